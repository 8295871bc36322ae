"""The page of the networks' tiers and seconds."""

import collections
import datetime

from tests.network_seconds import Recorder, markdown


def test_networks_stand_in_the_registry_s_order_with_the_seconds_of_each_tier() -> None:
    seconds = {
        "of no single network": {"default": 0.25},
        "resnet18": {"default": 1.5, "slow": 2.0},
        "nin": {"slow": 30},
    }
    recorder = Recorder(seconds, collections.Counter(default=3, slow=2))
    first, *_, said, _, _, head, _, nin, resnet18, others = markdown(
        recorder, ["nin", "resnet18"], datetime.date(2026, 1, 2)
    ).splitlines()
    assert first.startswith("These seconds are of one run on 2026-01-02, on ")
    assert said.endswith(": the default tier's 3 tests took 2 s, the slow tier's 2 tests took 32 s.")
    assert head == "| network | default tier, s | slow tier, s |"
    assert (nin, resnet18) == ("| nin |  | 30.0 |", "| resnet18 | 1.5 | 2.0 |")
    assert others == "| of no single network | 0.2 |  |"
