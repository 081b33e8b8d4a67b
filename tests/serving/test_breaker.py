from penstock.serving.breaker import Breaker


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


def test_failures_in_a_row_open_it_and_one_request_tests_whether_all_is_well():
    clock = Clock()
    breaker = Breaker(max_failures=3, rest_s=5, now_s=clock)
    for _ in range(2):
        breaker.failed()
    breaker.succeeded()
    for _ in range(2):
        breaker.failed()
    assert breaker.admits()
    breaker.failed()
    assert breaker.open
    assert not breaker.admits()
    assert breaker.retry_after_s == 5
    clock.now_s += 5
    assert [breaker.admits(), breaker.admits()] == [True, False]
    breaker.failed()
    clock.now_s += 4
    assert not breaker.admits()
    clock.now_s += 1
    assert breaker.admits()
    breaker.succeeded()
    assert not breaker.open
    assert [breaker.admits(), breaker.admits()] == [True, True]


def test_an_unhealthy_model_is_left_alone_until_it_is_well():
    breaker = Breaker()
    breaker.probed(False)
    assert (breaker.open, breaker.admits()) == (True, False)
    breaker.probed(True)
    assert (breaker.open, breaker.admits()) == (False, True)


def test_getting_well_forgets_the_failures_before():
    breaker = Breaker(max_failures=2)
    breaker.failed()
    breaker.failed()
    breaker.probed(False)
    breaker.probed(True)
    assert breaker.admits()
    breaker.failed()
    assert breaker.admits()
