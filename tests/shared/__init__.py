"""What several files of tests share and is no fixture; fixtures are in `conftest`."""
