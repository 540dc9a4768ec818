import pickle
from collections import Counter

import pytest
from peft import PeftType
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_MIXED_MODEL_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
    get_peft_config,
)

import cera
from cera.adapters.register import add_peft_type, register_cera

MAPPINGS = {
    "config": (PEFT_TYPE_TO_CONFIG_MAPPING, cera.CeraConfig),
    "tuner": (PEFT_TYPE_TO_TUNER_MAPPING, cera.CeraModel),
    "prefix": (PEFT_TYPE_TO_PREFIX_MAPPING, "cera_"),
}


def snapshot():
    mappings = (PEFT_TYPE_TO_MIXED_MODEL_MAPPING, *(mapping for mapping, _ in MAPPINGS.values()))
    return list(PeftType), dict(PeftType.__members__), [dict(mapping) for mapping in mappings]


def test_cera_is_a_member_by_attribute_name_and_value():
    member = PeftType.CERA
    assert isinstance(member, PeftType)
    assert isinstance(member, str)
    assert (member.name, member.value, member) == ("CERA", "CERA", "CERA")
    assert PeftType("CERA") is member
    assert PeftType["CERA"] is member
    assert PeftType.__members__["CERA"] is member
    assert member in PeftType
    assert repr(member) == repr(PeftType.LORA).replace("LORA", "CERA")


def test_iteration_yields_cera_once_and_every_other_member_once():
    assert Counter(PeftType) == dict.fromkeys(PeftType.__members__.values(), 1)
    assert len(PeftType) == len(PeftType.__members__)
    assert PeftType.CERA in list(PeftType)


def test_other_members_are_as_they_were():
    assert PeftType("LORA") is PeftType["LORA"] is PeftType.LORA
    assert PeftType.LORA in list(PeftType)
    assert all(PeftType(member.value) is member and PeftType[member.name] is member for member in PeftType)
    assert PeftType.CERA != PeftType.LORA


def test_unknown_methods_are_still_refused():
    with pytest.raises(ValueError, match="NO_SUCH_METHOD"):
        PeftType("NO_SUCH_METHOD")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_member_survives_pickling(protocol):
    assert pickle.loads(pickle.dumps(PeftType.CERA, protocol)) is PeftType.CERA


@pytest.mark.parametrize("name", MAPPINGS)
def test_peft_maps_cera_to_its_classes(name):
    mapping, expected = MAPPINGS[name]
    assert mapping[PeftType.CERA] == mapping["CERA"] == expected


def test_peft_builds_the_config_from_a_dictionary():
    config = get_peft_config({"peft_type": "CERA", "r": 3})
    assert isinstance(config, cera.CeraConfig)
    assert (config.peft_type, config.r) == (PeftType.CERA, 3)


def test_registering_again_changes_nothing():
    before = snapshot()
    register_cera()
    register_cera()
    assert add_peft_type("CERA") is PeftType.CERA
    assert snapshot() == before
