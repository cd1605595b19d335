from needlework.evaluation.api.rate_limit import RateLimiter


def test_requests_per_minute_space_starts():
    limiter = RateLimiter(requests_per_minute=1, tokens_per_minute=None)
    assert limiter.wait_seconds <= 0
    limiter.start(tokens=10**9)
    assert 50 < limiter.wait_seconds <= 60


def test_tokens_per_minute_space_starts_and_the_longest_pause_holds():
    limiter = RateLimiter(requests_per_minute=None, tokens_per_minute=1000)
    limiter.start(tokens=500)
    assert 20 < limiter.wait_seconds <= 30
    limiter.pause(3000)
    assert 2900 < limiter.wait_seconds <= 3000
    limiter.pause(1)
    assert limiter.wait_seconds > 2900
