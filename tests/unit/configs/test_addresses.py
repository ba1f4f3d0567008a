"""Where addresses lead."""

import pytest

from configs.addresses import Reach, reach_of, reach_of_url
from configs.judges import JudgeConfig
from configs.validate_judges import check_judge


@pytest.mark.parametrize(
    ("address", "reach"),
    [
        ("8.8.8.8", Reach.PUBLIC),
        ("2606:4700::1111", Reach.PUBLIC),
        ("127.0.0.1", Reach.PRIVATE),
        ("10.1.2.3", Reach.PRIVATE),
        ("172.16.0.1", Reach.PRIVATE),
        ("192.168.1.1", Reach.PRIVATE),
        ("100.64.0.1", Reach.PRIVATE),
        ("::1", Reach.PRIVATE),
        ("fd12::1", Reach.PRIVATE),
        ("::ffff:127.0.0.1", Reach.PRIVATE),
        ("169.254.169.254", Reach.FORBIDDEN),
        ("::ffff:169.254.169.254", Reach.FORBIDDEN),
        ("fe80::1%eth0", Reach.FORBIDDEN),
        ("fd00:ec2::254", Reach.FORBIDDEN),
        ("100.100.100.200", Reach.FORBIDDEN),
        ("0.0.0.0", Reach.FORBIDDEN),
        ("::", Reach.FORBIDDEN),
        ("224.0.0.1", Reach.FORBIDDEN),
        ("255.255.255.255", Reach.FORBIDDEN),
    ],
)
def test_an_address_leads_where_it_leads(address: str, reach: Reach):
    if address == "255.255.255.255":  # private by Python's word; nobody answers there
        assert reach_of(address) is not Reach.PUBLIC
    else:
        assert reach_of(address) is reach


@pytest.mark.parametrize(
    ("url", "reach"),
    [
        ("https://api.openai.com/v1", None),
        ("http://localhost:8000/v1", Reach.PRIVATE),
        ("http://judge:8000/v1", Reach.PRIVATE),
        ("http://judge.default.svc.cluster.local/v1", Reach.PRIVATE),
        ("http://[::1]:8000/v1", Reach.PRIVATE),
        ("http://LOCALHOST./v1", Reach.PRIVATE),
        ("http://169.254.169.254/latest", Reach.FORBIDDEN),
        ("http://metadata.google.internal/v1", Reach.FORBIDDEN),
    ],
)
def test_a_url_tells_what_its_text_tells(url: str, reach: Reach | None):
    assert reach_of_url(url) is reach


def problems(**endpoint: object) -> list[str]:
    judge = JudgeConfig.model_validate({"endpoint": {"model": "m", **endpoint}})
    return [f"{p.where} {p.what}" for p in check_judge("j", judge)]


def test_a_recipe_says_that_it_means_a_private_address():
    assert problems(base_url="https://api.example.com/v1", api_key_env="K") == []
    assert "private network" in problems(base_url="http://10.0.0.7/v1")[0]
    assert problems(base_url="http://10.0.0.7/v1", private=True, api_key_env="K") == []
    for private in (True, False):
        found = problems(base_url="http://169.254.169.254/v1", private=private)
        assert "never called" in found[0]
    assert "unencrypted" in problems(base_url="http://api.example.com/v1", api_key_env="K")[0]
