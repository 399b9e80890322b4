"""The one exception for what a user can mend."""


class UserError(Exception):
    """Bad input or configuration: the command prints it as one line and exits with status 2, without a traceback.

    Args:
        what: what is wrong, naming the offending value.
        where: `file:line` or a YAML path such as `training.batch_size`.
        mend: what to do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, mend: str | None = None) -> None:
        self.what, self.where, self.mend = what, where, mend
        head = f"{where}: {what}" if where else what
        super().__init__(f"{head.rstrip('.')}. {mend}" if mend else head)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the three parts when the error travels between processes."""
        return _rebuild, (self.what, self.where, self.mend)


def _rebuild(what: str, where: str | None, mend: str | None) -> UserError:
    return UserError(what, where=where, mend=mend)
