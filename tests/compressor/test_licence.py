import pytest

from compressor.licence import Licence


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\nText", Licence("apache-2.0")),
        ("---\r\nlicense: mit\r\n---\r\n", Licence("mit")),
        ("---\nlicense: [a, b]\n---\n", Licence()),
        ("---\n: [\n---\n", Licence()),
        ("# license: mit\n", Licence()),
        (None, Licence()),
        (b"\xff\xfe", Licence()),
    ],
)
def test_the_licence_of_a_readme(tmp_path, readme, expected):
    if readme is not None:
        (tmp_path / "README.md").write_bytes(readme if isinstance(readme, bytes) else readme.encode())
    assert Licence.of(tmp_path) == expected
