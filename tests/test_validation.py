"""What does not fit, and what has changed, in one sentence."""

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pdr_graph.validation import Fault, differences, shown


class Table(BaseModel):
    """A table of settings."""

    model_config = ConfigDict(extra="forbid")

    rate: float = 1.0


class Settings(BaseModel):
    """Settings with a table."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(ge=0)
    widths: tuple[int, ...] = ()
    table: Table | None = None


def fault_of(values: object) -> Fault:
    with pytest.raises(ValidationError) as raised:
        Settings.model_validate(values)
    return Fault.of(raised.value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"steps": -1}, "steps -1: input should be greater than or equal to 0"),
        ({"steps": "x"}, "steps 'x': input should be a valid integer, unable to parse string"),
        ({"steps": 1, "widths": [4, "x"]}, "widths 'x': input should be a valid integer"),
        ({}, "steps is missing; set it"),
        ({"steps": 1, "stepz": 2}, "unknown setting 'stepz'; perhaps 'steps'; known: steps, wi"),
        (
            {"steps": 1, "table": {"rates": 2}},
            "unknown setting 'rates' in [table]; perhaps 'rate'; known: rate",
        ),
        ({"steps": 1, "table": {"rate": []}}, "table.rate []: input should be a valid number"),
    ],
)
def test_a_fault_names_setting_value_and_remedy(values, sentence):
    """Nested settings are named with dots; an unknown one comes with those that exist."""
    assert fault_of(values).sentence(model=Settings).startswith(sentence)


def test_a_fault_takes_the_users_name_and_hides_a_secret():
    """A variable of the environment has a name of its own, and a key is never shown."""
    fault = fault_of({"steps": "s3cret"})
    assert fault.sentence("PDR_STEPS").startswith("PDR_STEPS 's3cret': input should be")
    assert "s3cret" not in fault.sentence("PDR_STEPS", secret=True)


def test_a_difference_is_named_with_both_values():
    """Tables are compared field by field; what may differ is left out."""
    recorded = {"seed": 0, "lora": None, "policy": {"url": "a", "slots": 1}}
    asked = {"seed": 0, "lora": {"rank": 4}, "policy": {"url": "b", "slots": 1}}
    changed = differences(recorded, asked, free={"policy.url"})
    assert [str(each) for each in changed] == ["lora.rank (None, now 4)"]
    assert [each.name for each in differences(recorded, asked)] == ["policy.url", "lora.rank"]
    assert differences(recorded, recorded) == []


def test_a_long_value_is_cut():
    """A prompt in a message is no message."""
    assert shown((8, 4)) == "8,4"
    assert len(shown("x" * 100)) == 60
