"""Device profiles: reading, recognising, and the cores to run on."""

from __future__ import annotations

from pathlib import Path

import pytest

from amc_mobile.device.phone_output import CpuPolicy
from amc_mobile.device.profiles import default_cores, load_profiles, matching_profiles, most_special, profile_named
from amc_mobile.errors import InvalidConfig

SLOW = CpuPolicy((0, 1, 2, 3), 1700000, 1700000, "g")
MIDDLE = CpuPolicy((4, 5, 6, 7), 2360000, 2360000, "g")
FAST = CpuPolicy((8,), 2900000, 2900000, "g")
ALL_EQUAL = CpuPolicy((0, 1, 2, 3), 2000000, 2000000, "g")
PIXEL_8 = {"ro.product.manufacturer": "Google", "ro.product.model": "Pixel 8", "ro.product.device": "shiba"}


@pytest.mark.parametrize(
    ("properties", "names"),
    [
        ({**PIXEL_8, "ro.product.cpu.abilist": "arm64-v8a,armeabi-v7a"}, ["pixel_8", "pixel", "generic_arm64"]),
        ({**PIXEL_8, "ro.product.device": "flame", "ro.product.model": "Pixel 4"}, ["pixel_4", "pixel"]),
        ({**PIXEL_8, "ro.product.device": "marlin", "ro.product.model": "Pixel XL"}, ["pixel_1", "pixel"]),
        ({"ro.product.manufacturer": "Samsung"}, ["galaxy"]),
        ({**PIXEL_8, "ro.kernel.qemu": "1"}, ["emulator", "pixel_8", "pixel"]),
        ({"ro.product.cpu.abilist": "x86_64"}, []),
        ({"ro.product.model": "Pixel 8"}, []),
    ],
)
def test_phones_are_recognised_most_special_profile_first(properties: dict[str, str], names: list[str]) -> None:
    assert [profile.name for profile in matching_profiles(load_profiles(), properties)] == names


@pytest.mark.parametrize(
    ("threads", "policies", "cores"),
    [
        (1, (SLOW, MIDDLE, FAST), (8,)),
        (2, (SLOW, MIDDLE, FAST), (4, 5, 6, 7)),
        (5, (SLOW, MIDDLE, FAST), (4, 5, 6, 7, 8)),
        (9, (SLOW, MIDDLE, FAST), (0, 1, 2, 3, 4, 5, 6, 7, 8)),
        (10, (SLOW, MIDDLE, FAST), ()),
        (1, (ALL_EQUAL,), (1, 2, 3)),
        (4, (ALL_EQUAL,), (0, 1, 2, 3)),
        (1, (CpuPolicy((0,), 1000, 1000, "g"),), ()),
        (1, (), ()),
    ],
)
def test_default_cores_are_fast_and_alike(
    threads: int, policies: tuple[CpuPolicy, ...], cores: tuple[int, ...]
) -> None:
    assert default_cores(threads, policies) == cores


def test_the_more_special_of_the_built_in_profiles_is_taken(tmp_path: Path) -> None:
    profiles = load_profiles()
    assert most_special(profiles["pixel"], profiles, PIXEL_8).name == "pixel_8"
    assert most_special(profiles["pixel_8"], profiles, PIXEL_8).name == "pixel_8"
    assert most_special(profiles["pixel"], profiles, {**PIXEL_8, "ro.product.device": "panther"}).name == "pixel"
    (tmp_path / "pixel.toml").write_text('summary = "mine"\ncores = "8"\n[[match]]\n"ro.product.model" = "Pixel.*"\n')
    own = load_profiles(tmp_path)
    assert most_special(own["pixel"], own, PIXEL_8) == own["pixel"]
    with pytest.raises(InvalidConfig, match="unknown key 'is_built_in'"):
        (tmp_path / "other.toml").write_text('summary = "x"\nis_built_in = true\n')
        load_profiles(tmp_path)


def test_a_profiles_own_cores_win_while_there_are_enough() -> None:
    profile = load_profiles()["pixel_8"]
    assert profile.cores_for(1, (SLOW, MIDDLE, FAST)) == (4, 5, 6, 7)
    assert profile.cores_for(5, (SLOW, MIDDLE, FAST)) == (4, 5, 6, 7, 8)
    assert profile.cores_for(1, (ALL_EQUAL,)) == (1, 2, 3)  # this phone has no cores 4 to 7
    assert profile.cores_for(1, ()) == (4, 5, 6, 7)  # a phone that hides its cores


def test_the_users_profiles_override_and_add(tmp_path: Path) -> None:
    (tmp_path / "pixel_8.toml").write_text('summary = "mine"\nthreads = 4\n')
    (tmp_path / "fairphone.toml").write_text('summary = "FP"\n[[match]]\n"ro.product.manufacturer" = "Fairphone"\n')
    profiles = load_profiles(tmp_path)
    assert (profiles["pixel_8"].summary, profiles["pixel_8"].threads) == ("mine", 4)
    assert matching_profiles(profiles, {"ro.product.manufacturer": "fairphone"})[0].name == "fairphone"
    assert "galaxy" in profiles


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('summary = "x"\nthread = 1', "unknown key 'thread'"),
        ("threads = 1", "no summary"),
        ('summary = "x"\nthreads = "1"', "not of type int"),
        ('summary = "x"\nthreads = true', "not of type int"),
        ('summary = "x"\nthreads = 0', "threads = 0"),
        ('summary = "x"\nruntime = "ncnn"', "ncnn"),
        ('summary = "x"\ncores = "0"', "core 0"),
        ('summary = "x"\ncores = "a-b"', "a-b"),
        ('summary = "x"\nmax_celsius = 900', "max_celsius"),
        ('summary = "x"\nhysteresis_celsius = -1', "hysteresis_celsius"),
        ('summary = "x"\ncap_wait_s = -1', "cap_wait_s"),
        ('summary = "x"\n[[match]]\n"ro.x" = "("', "ro.x"),
        ('summary = "x"\n[[match]]\nro.x = "y"', "is no text"),
        ('summary = "x"\nmatch = 1', "match"),
        ("summary = ", "not TOML"),
    ],
)
def test_a_wrong_profile_names_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(InvalidConfig) as caught:
        load_profiles(tmp_path)
    assert named in caught.value.message
    assert "mine.toml" in caught.value.message


def test_an_unknown_device_lists_the_known_ones() -> None:
    with pytest.raises(InvalidConfig) as caught:
        profile_named(load_profiles(), "pixle")
    assert "pixel_8" in caught.value.next_step
    assert "host" in caught.value.next_step
