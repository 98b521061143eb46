from scm_core.testing import check_modality

from newname import SPEC


def test_the_plugin_keeps_to_the_contract():
    report = check_modality(SPEC)
    assert report.ok, str(report)
