def test_x(server):
    print(server)
