from beit.run.settings import flat


def test_nested_settings_have_dotted_names():
    settings = {"a": {"b": 1, "c": {}}, "d": (1, 2), "e": {"f": {"g": "x"}}}
    assert flat(settings) == {"a.b": 1, "a.c": {}, "d": [1, 2], "e.f.g": "x"}
