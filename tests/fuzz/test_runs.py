def test_input(ends_well, number):
    ends_well("runs", number)
