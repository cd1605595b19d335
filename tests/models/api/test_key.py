import pytest

from needlework.models.api.key import api_key

KEY = "sk-very-secret"


def test_a_key_is_read_from_its_variable_and_never_printed(monkeypatch: pytest.MonkeyPatch):
    assert api_key(None) is None
    monkeypatch.setenv("A_KEY", f"{KEY}\n")
    assert api_key("A_KEY") == KEY
    for wrong in (f"{KEY}\nX", f"{KEY} {KEY}", f"{KEY}ö"):
        monkeypatch.setenv("A_KEY", wrong)
        with pytest.raises(ValueError, match=r"^key_env A_KEY: does not hold a key") as caught:
            api_key("A_KEY")
        assert KEY not in str(caught.value)
    monkeypatch.delenv("A_KEY")
    with pytest.raises(ValueError, match=r"^key_env A_KEY: is not set in the environment"):
        api_key("A_KEY")
