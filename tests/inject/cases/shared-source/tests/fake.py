FAKE = "http://front:3000"
