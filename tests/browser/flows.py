"""A builder of workflows in the editor's format, for graphs in the style people share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

C = "CONDITIONING"
OUTPUTS = {
    "CheckpointLoaderSimple": ("MODEL", "CLIP", "VAE"),
    "UNETLoader": ("MODEL",),
    "CLIPLoader": ("CLIP",),
    "DualCLIPLoader": ("CLIP",),
    "TripleCLIPLoader": ("CLIP",),
    "VAELoader": ("VAE",),
    "LoraLoader": ("MODEL", "CLIP"),
    "LoraLoaderModelOnly": ("MODEL",),
    "CLIPSetLastLayer": ("CLIP",),
    "CLIPTextEncode": (C,),
    "CLIPTextEncodeSDXL": (C,),
    "FluxGuidance": (C,),
    "ConditioningZeroOut": (C,),
    "ConditioningSetTimestepRange": (C,),
    "ConditioningCombine": (C,),
    "ControlNetLoader": ("CONTROL_NET",),
    "ControlNetApplyAdvanced": (C, C),
    "InpaintModelConditioning": (C, C, "LATENT"),
    "InstructPixToPixConditioning": (C, C, "LATENT"),
    "WanImageToVideo": (C, C, "LATENT"),
    "ModelSamplingFlux": ("MODEL",),
    "ModelSamplingSD3": ("MODEL",),
    "FreeU_V2": ("MODEL",),
    "ModelMergeSimple": ("MODEL",),
    "ModelSave": (),
    "EmptyLatentImage": ("LATENT",),
    "EmptySD3LatentImage": ("LATENT",),
    "EmptyHunyuanLatentVideo": ("LATENT",),
    "LoadImage": ("IMAGE", "MASK"),
    "VAEEncode": ("LATENT",),
    "VAEDecode": ("IMAGE",),
    "LatentUpscaleBy": ("LATENT",),
    "UpscaleModelLoader": ("UPSCALE_MODEL",),
    "ImageUpscaleWithModel": ("IMAGE",),
    "KSampler": ("LATENT",),
    "KSamplerAdvanced": ("LATENT",),
    "SamplerCustom": ("LATENT", "LATENT"),
    "SamplerCustomAdvanced": ("LATENT", "LATENT"),
    "KSamplerSelect": ("SAMPLER",),
    "BasicScheduler": ("SIGMAS",),
    "RandomNoise": ("NOISE",),
    "BasicGuider": ("GUIDER",),
    "CFGGuider": ("GUIDER",),
    "DualCFGGuider": ("GUIDER",),
    "SaveImage": (),
    "PreviewImage": (),
    "CreateVideo": ("VIDEO",),
    "SaveVideo": (),
    "PrimitiveNode": ("INT",),
    "SafeGuidance_GuardModel": ("MODEL", "SAFEGUIDANCE_TRACE", "STRING"),
    "SafeGuidance_SafeCFGPatch": ("MODEL", "SAFEGUIDANCE_TRACE"),
    # of other packs
    "SetNode": ("*",),
    "IPAdapterAdvanced": ("MODEL",),
    "UltimateSDUpscale": ("IMAGE",),
    "FaceDetailer": ("IMAGE", "IMAGE", "IMAGE", "MASK", "DETAILER_PIPE", "IMAGE"),
    "ToBasicPipe": ("BASIC_PIPE",),
    "FromBasicPipe": ("MODEL", "CLIP", "VAE", C, C),
    "KSampler (Efficient)": ("MODEL", C, C, "LATENT", "VAE", "IMAGE"),
}
HAS_WIDGETS = {"SafeGuidance_GuardModel": [True] * 7 + ["balanced", "auto"]}


@dataclass(frozen=True)
class Out:
    """An output of a node, or a slot of a subgraph's entrance."""

    node: int
    slot: int
    kind: str


@dataclass
class Flow:
    """A graph in the making; titles are unique in it and stand for the nodes in what a test expects."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    subgraphs: list[dict[str, Any]] = field(default_factory=list)
    entrances: list[tuple[str, str]] = field(default_factory=list)

    def add(
        self,
        kind: str,
        title: str = "",
        *,
        mode: int = 0,
        widgets: Sequence[Any] | None = None,
        outputs: Sequence[str] | None = None,
        **inputs: Out | None,
    ) -> tuple[Out, ...]:
        """Put a node in; returns its outputs.

        Args:
            kind: its type.
            title: by default the type.
            mode: 2 is muted, 4 bypassed.
            widgets: values of its widgets.
            outputs: types, where they are not those of ``OUTPUTS``.
            inputs: where its inputs come from; None is an input without a link.
        """
        number = len(self.nodes) + 1
        types = tuple(outputs if outputs is not None else OUTPUTS[kind])
        entries = []
        for slot, (name, source) in enumerate(inputs.items()):
            link = None if source is None else self._link(source, number, slot)
            of_any = kind in ("Reroute", "SetNode")
            entries.append({"name": name, "type": "*" if of_any or source is None else source.kind, "link": link})
        place = (number - 1) % 6 * 420, (number - 1) // 6 * 520
        self.nodes.append(
            {
                "id": number,
                "type": kind,
                "title": title or kind,
                "pos": [40 + place[0], 80 + place[1]],
                "size": [360, 420],
                "flags": {},
                "order": number - 1,
                "mode": mode,
                "inputs": entries,
                "outputs": [{"name": type_, "type": type_, "links": []} for type_ in types],
                "properties": {},
                "widgets_values": list(widgets if widgets is not None else HAS_WIDGETS.get(kind, [])),
            }
        )
        return tuple(Out(number, slot, type_) for slot, type_ in enumerate(types))

    def one(self, kind: str, title: str = "", **more: Any) -> Out:
        """Put a node in; returns its first output."""
        return self.add(kind, title, **more)[0]

    def entrance(self, name: str, kind: str) -> Out:
        """A slot of a subgraph's entrance."""
        self.entrances.append((name, kind))
        return Out(-10, len(self.entrances) - 1, kind)

    def use(self, definition: Mapping[str, Any], title: str, *, mode: int = 0, **inputs: Out) -> tuple[Out, ...]:
        """Put a subgraph in; its definition comes from ``as_subgraph``."""
        if definition not in self.subgraphs:
            self.subgraphs += [*definition["nested"], definition]
        types = [entry["type"] for entry in definition["outputs"]]
        return self.add(str(definition["id"]), title, mode=mode, outputs=types, **inputs)

    def _link(self, source: Out, target: int, slot: int) -> int:
        number = len(self.links) + 1
        self.links.append([number, source.node, source.slot, target, slot, source.kind])
        for node in self.nodes:
            if node["id"] == source.node:
                node["outputs"][source.slot]["links"].append(number)
        return number

    def workflow(self) -> dict[str, Any]:
        """The whole in the editor's format."""
        definitions = [{key: value for key, value in each.items() if key != "nested"} for each in self.subgraphs]
        return {
            "id": "00000000-0000-4000-8000-000000000000",
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            **({"definitions": {"subgraphs": definitions}} if definitions else {}),
            "config": {},
            "extra": {},
            "version": 0.4,
        }

    def as_subgraph(self, number: int, name: str, **exits: Out) -> dict[str, Any]:
        """What a subgraph is made of.

        Args:
            number: makes its id.
            name: shown on its nodes.
            exits: its outputs by name.
        """
        out = []
        for slot, (label, source) in enumerate(exits.items()):
            link = self._link(source, -20, slot)
            out.append({"id": _uuid(number, 200 + slot), "name": label, "type": source.kind, "linkIds": [link]})
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        return {
            "id": _uuid(number, 0),
            "version": 1,
            "state": {
                "lastGroupId": 0,
                "lastNodeId": len(self.nodes),
                "lastLinkId": len(self.links),
                "lastRerouteId": 0,
            },
            "revision": 0,
            "config": {},
            "name": name,
            "inputNode": {"id": -10, "bounding": [-200, 100, 120, 200]},
            "outputNode": {"id": -20, "bounding": [2600, 100, 120, 200]},
            "inputs": [
                {
                    "id": _uuid(number, 100 + slot),
                    "name": label,
                    "type": kind,
                    "linkIds": [link[0] for link in self.links if link[1] == -10 and link[2] == slot],
                }
                for slot, (label, kind) in enumerate(self.entrances)
            ],
            "outputs": out,
            "widgets": [],
            "nodes": self.nodes,
            "groups": [],
            "links": [dict(zip(names, link, strict=True)) for link in self.links],
            "extra": {},
            "nested": self.subgraphs,
        }


def _uuid(number: int, part: int) -> str:
    return f"00000000-0000-4000-8000-{number:06d}{part:06d}"
