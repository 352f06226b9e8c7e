import pytest

from fault_times import FaultTimes


def pytest_addoption(parser):
    parser.addoption("--fault-times", metavar="FILE",
                     help="write how long each fault of the matrix went unnamed and kept all from serving, and hold it to the bars")


@pytest.fixture(scope="session")
def fault_times(request):
    return FaultTimes(request.config.getoption("--fault-times"))
