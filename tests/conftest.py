def pytest_addoption(parser):
    parser.addoption("--regenerate", action="store_true", help="write the golden graphs anew (tests/golden)")
