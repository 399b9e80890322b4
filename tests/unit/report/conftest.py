import made_up
import pytest


@pytest.fixture
def comparison():
    return made_up.comparison()
