def test_input(ends_well, group, number):
    ends_well(group, number)
