# SPDX-License-Identifier: Apache-2.0
"""The layers of a system: one image per layer, signed with the system's key and stored in the system's own image."""

from __future__ import annotations

from erofs_edge.build.extension_image import write_extension
from erofs_edge.build.inputs import Inputs
from erofs_edge.build.signing import Collector
from erofs_edge.build.stages import Bench, Compose
from erofs_edge.sources.compose import Layer, lay_certificate, lay_layers, refuse_clashes
from erofs_edge.tree import FileTree
from erofs_edge.trust.certificate import self_signed


def make_layers(inputs: Inputs, bench: Bench) -> tuple[list[Layer], Compose, list[str]]:
    """Make NAME.raw in the bench's folder for each layer. Returns the layers, a function that puts them into the
    system's tree, and notes for the user, to which that function adds.

    The function also writes the manifest's `signer_certificate`. Packages of the system are left out of the images.
    Raises ManifestError if two layers put different files at one path, and SignaturesMissingError if signatures are
    made elsewhere: once, for all of them.
    """
    layers: list[Layer] = []
    notes: list[str] = []
    loaded = inputs.system.loaded
    host = [package.name for package in inputs.system.lock.packages["system"]]
    signed = Collector()
    for locked in inputs.layers:
        with signed.one():
            made = write_extension(locked, host, inputs.epoch, bench)
            value = locked.loaded.value
            layers.append(Layer(value.system, value.kind, made.path, made.tree, made.root_hash))
            notes += [f"layer {value.system}: {note}" for note in made.notes]
    signed.finish()
    refuse_clashes(loaded, layers)

    def lay(tree: FileTree) -> None:
        if layers or loaded.value.signer_certificate:
            certificate = self_signed(bench.signer, inputs.epoch).pem
            lay_certificate(loaded, certificate, tree)
            notes.extend(lay_layers(loaded, layers, certificate, tree) if layers else [])

    return layers, lay, notes
