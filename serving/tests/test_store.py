"""Private copies: by content, whatever happens to the directory, and of nothing outside of the allowed one."""

import shutil
import stat
from pathlib import Path

import pytest

from cera_vllm.adapter_files import AdapterError
from cera_vllm.models import check_name, within
from cera_vllm.store import AdapterStore


def test_copies_are_by_content_and_private(adapters: dict[str, Path], tmp_path: Path) -> None:
    store = AdapterStore()
    folder = tmp_path / "mine"
    shutil.copytree(adapters["silu"], folder)
    first = store.take(folder)
    assert store.take(adapters["silu"]) == first
    shutil.copytree(adapters["relu"], folder, dirs_exist_ok=True)
    second = store.take(folder)
    assert second != first
    shutil.rmtree(folder)
    for copy, name in ((first, "silu"), (second, "relu")):
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (copy / file).read_bytes() == (adapters[name] / file).read_bytes()
        assert store.holds(copy)
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    assert not store.holds(adapters["silu"])


def test_the_store_goes_with_its_owner(adapters: dict[str, Path]) -> None:
    store = AdapterStore()
    root = store.root
    store.take(adapters["silu"])
    del store
    assert not root.exists()


def test_a_removed_copy_cannot_be_held(adapters: dict[str, Path]) -> None:
    store = AdapterStore()
    copy = store.take(adapters["silu"])
    with store.hold(copy):
        assert store.is_held(copy)
    assert not store.is_held(copy)
    assert store.holds_of(copy) == 1
    store.remove([copy])
    with pytest.raises(AdapterError, match="was unloaded"), store.hold(copy):
        pass


@pytest.mark.parametrize("path", ["../outside", "/etc", "inner/../../outside", "a\0b"])
def test_a_path_of_a_client_stays_below_the_root(tmp_path: Path, path: str) -> None:
    with pytest.raises(AdapterError, match="is relative to the server's --adapter-root"):
        within(tmp_path, path)
    assert within(tmp_path, "tenant/run.1") == tmp_path / "tenant" / "run.1"
    with pytest.raises(AdapterError, match="start it with --adapter-root"):
        within(None, "tenant")


def test_links_out_of_the_root_are_refused(adapters: dict[str, Path], tmp_path: Path) -> None:
    """A directory or a file may be a link, as in the hub's cache, if it leads to a place within."""
    store, root = AdapterStore(), tmp_path / "root"
    shutil.copytree(adapters["silu"], root / "real")
    shutil.copytree(adapters["relu"], tmp_path / "secret")
    (root / "within").symlink_to("real")
    assert store.take(root / "within", root) == store.take(root / "real", root)
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "file").mkdir()
    (root / "file" / "adapter_config.json").symlink_to(root / "real" / "adapter_config.json")
    (root / "file" / "adapter_model.safetensors").symlink_to(tmp_path / "secret" / "adapter_model.safetensors")
    for name in ("out", "file"):
        with pytest.raises(AdapterError, match="lies outside of the allowed directory"):
            store.take(root / name, root)
        assert store.take(root / name)  # which the operator may


def test_names() -> None:
    check_name("tenant-a_1.5")
    for name in ("", "a@b", "a/b", "a b", "ä"):
        with pytest.raises(AdapterError, match="a name has letters, digits"):
            check_name(name)
