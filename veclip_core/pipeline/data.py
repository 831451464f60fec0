"""The chain of one scale on one root: its URLs and shards, and how any of its stages is run and becomes current.

What is made of the shards: captions.py, manifests.py.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from veclip_core import storage
from veclip_core.download.download import DownloadConfig, DownloadOperation, DownloadRuntime
from veclip_core.pipeline import executors
from veclip_core.pipeline.parts import first_parts, is_limited, keys_in
from veclip_core.pipeline.provenance import note_sources
from veclip_core.pipeline.room import require_room
from veclip_core.samples import Grid, PartRange, ShardKey
from veclip_core.scales import Scale
from veclip_core.settings import Settings
from veclip_core.shards import Current, NotMadeYet, ShardSet, promote, read_current
from veclip_core.sources.blocklist import Blocklist, read_blocklist
from veclip_core.sources.list_urls import scan
from veclip_core.sources.own_pictures import NAMED, Listing, OwnPictures, OwnPicturesError
from veclip_core.sources.sample_server import HOST, SampleServer
from veclip_core.sources.sample_world import build_world
from veclip_core.sources.urls import UrlList
from veclip_core.stage import Executor, Operation, output_of, run_stage
from veclip_core.stage_report import StageReport

OnPart = Callable[[int, str, Mapping[str, Any]], None]
"""Called with a part's number, the stage, and the sums of its shards, when the last shard of the part is done."""
OnShard = Callable[[str, ShardSet, ShardKey, Mapping[str, Any]], None]
"""Called with the stage, its output, the shard and its marker, when a shard is done: for previews and rates meanwhile."""


def _no_part(part: int, stage: str, sums: Mapping[str, Any]) -> None:
    return


def _no_shard(stage: str, output: ShardSet, key: ShardKey, marker: Mapping[str, Any]) -> None:
    return


@dataclass(frozen=True)
class Chain:
    """One scale on one root."""

    settings: Settings
    scale: Scale
    on_part: OnPart = _no_part
    on_shard: OnShard = _no_shard

    @property
    def root(self) -> str:
        return self.settings.root

    @property
    def source(self) -> str:
        return self.scale.source.name

    def current(self, stage: str, asset: str) -> Current:
        """What is current of an asset's stage. Raises NotMadeYet with the command that makes it."""
        found = read_current(self.root, self.source, stage, self._label(asset))
        if found is None:
            name = f"{asset}_{self.scale.name}"
            raise NotMadeYet(
                f"{name} is not made yet at {self.root}. Run `dagster asset materialize --select {name}`"
                f" (or `veclip run {asset} --scale {self.scale.name}`) first."
            )
        return found

    def _label(self, asset: str) -> str:
        """The name under which an asset's output is current: the control's, the styles' and the filtering network's stages stand
        beside the scale's own."""
        kind, _, variant = asset.partition("_")
        if kind == "dfn":
            return f"{self.scale.name}-{kind}"
        return f"{self.scale.name}-{variant}" if kind in ("vecap", "manifest") and variant else self.scale.name

    def raw_urls(self, rows: int | None = None) -> StageReport:
        """List the URLs. `rows`: only the first so many of the list, which makes it partial.

        Raises:
            NotMadeYet: when the scale has no URL list.
            OwnPicturesError: when no row of the table of AltTexts names one of the pictures.
        """
        if self._is_own():
            listing = self._own_pictures()
            operation, _ = listing.operations()
            report = self._run_and_promote(
                "raw_urls",
                operation,
                listing.grid,
                1,
                {},
                executors.for_captions(self.settings, operation),
                inputs={},
                partial=False,
            )
            note_sources(self._listed(), self.settings, self.settings.pictures)
            if self.settings.alt_texts and not report.extra[NAMED]:
                raise OwnPicturesError(
                    f"no row of {self.settings.alt_texts} names a picture of {self.settings.pictures}: its column of files must"
                    f" hold their paths inside the folder or their names, such as {listing.example!r}"
                )
            return report
        urls = self.url_list()
        found = scan(
            replace(urls, rows=rows),
            self.settings.cache_folder / "scans" / self.source / ("all" if rows is None else f"first-{rows}"),
            rows_per_part=self.scale.source.rows_per_part,
            rows_per_shard=self.scale.source.rows_per_shard,
            blocked=self.blocklist(),
        )
        parts = min(self.scale.parts, found.grid.parts)
        listing_urls = found.operation(self.source)
        report = self._run_and_promote(
            "raw_urls",
            listing_urls,
            found.grid,
            parts,
            {},
            executors.one_process(),
            inputs={},
            partial=rows is not None,
        )
        note_sources(self._listed(), self.settings, *urls.files)
        return report

    def _listed(self) -> ShardSet:
        return self.current("list_urls", "raw_urls").shard_set(self.root, self.source)

    def blocklist(self) -> Blocklist:
        """The domains that are not asked. Raises BlocklistError."""
        return read_blocklist(self.settings.blocked_domains) if self.settings.blocked_domains else Blocklist()

    def url_list(self) -> UrlList:
        """The scale's URL list: the sample world's own, or the one that VECLIP_URLS names."""
        if self._serves_itself():
            world = build_world(self.settings.cache_folder / "packages", self.settings.cache_folder / "world")
            return UrlList((str(world.urls),))
        if self.settings.urls:
            return UrlList(
                tuple(piece.strip() for piece in self.settings.urls.split(",")),
                url_column=self.settings.url_column or None,
                alt_column="" if self.settings.alt_column == "none" else self.settings.alt_column or None,
                caption_column=self.settings.caption_column or None,
            )
        raise NotMadeYet(
            f"raw_urls_{self.scale.name} needs a URL list: set VECLIP_URLS to a parquet, csv, tsv, jsonl or json file or"
            " pattern with URLs and AltTexts, local or remote (for example s3://bucket/urls/*.parquet)."
        )

    def shards(self, parts: int | None = None, only: PartRange | None = None) -> StageReport:
        """Download. `parts`: the first so many, which makes it partial; `only`: these, by which nothing becomes current."""
        urls = self.current("list_urls", "raw_urls")
        inputs = {"list_urls": urls.shard_set(self.root, self.source)}
        if self._is_own():
            _, pack = self._own_pictures().operations()
            if storage.read_json(storage.join(inputs["list_urls"].uri, "config.json"))[
                "config"
            ] != pack.config.model_dump(mode="json"):
                raise NotMadeYet("your pictures have changed since they were listed: make raw_urls_own again")
            return self._run_and_promote(
                "shards", pack, urls.grid, 1, {"list_urls": urls}, executors.for_captions(self.settings, pack),
                inputs=inputs, partial=False,
            )  # fmt: skip
        runtime = DownloadRuntime(
            threads=self.settings.download_threads,
            allowed_hosts=self.settings.allow_hosts,
            host_connections=self.settings.host_connections,
            host_pause_s=self.settings.host_pause_s,
            contact=self.settings.contact,
            shard_deadline_s=self.settings.shard_deadline_s,
        )
        served: AbstractContextManager[object] = nullcontext()
        if self._serves_itself():
            served = server = SampleServer(self.settings.cache_folder / "world")
            runtime = replace(runtime, allowed_hosts=(*self.settings.allow_hosts, f"{HOST}:{server.port}"))
        config, blocked = download_config(self.scale), self.blocklist()
        if blocked.domains:
            config = config.model_copy(update={"blocked": blocked.digest})
        operation = DownloadOperation(config, runtime, blocked)
        executor = executors.for_downloads(self.settings, here=self._serves_itself())
        keys = keys_in(only, urls) if only else frozenset(urls.grid.keys(first_parts(parts, urls)))
        require_room(output_of(operation, self.root, self.source, inputs), keys, urls)
        with served:
            if only is not None:
                return self.run(operation, urls.grid, urls.parts, inputs, executor, True, keys)
            return self._run_and_promote("shards", operation, urls.grid, first_parts(parts, urls), {"list_urls": urls}, executor,
                             inputs=inputs, partial=is_limited(parts, urls))  # fmt: skip

    def adopt(self, tars: str, alt_texts: str = "") -> tuple[StageReport, StageReport]:
        """Take WebDataset tars that are there, such as img2dataset's or Curator's, for the scale's list and shards, where they lie.

        A sample whose json names a URL has the id that the URL has everywhere.

        Args:
            tars: a folder, a pattern (`s3://bucket/{00000..00099}.tar`) or one of them.
            alt_texts: a table in place of the texts in them.

        Raises:
            OwnPicturesError: when there are no tars.
        """
        listing = OwnPictures(tars, alt_texts).scan()
        if not listing.packed:
            raise OwnPicturesError(f"{tars} is a folder of pictures: `veclip caption` and the scale `own` take those")
        lists, links = listing.operations()
        executor = executors.for_captions(self.settings, lists)
        listed = self._run_and_promote("raw_urls", lists, listing.grid, 1, {}, executor, inputs={}, partial=False)
        note_sources(self._listed(), self.settings, tars)
        urls = self.current("list_urls", "raw_urls")
        inputs = {"list_urls": urls.shard_set(self.root, self.source)}
        linked = self._run_and_promote(
            "shards", links, urls.grid, 1, {"list_urls": urls}, executor, inputs=inputs, partial=False
        )
        return listed, linked

    def _is_own(self) -> bool:
        return self.source == "own"

    def _own_pictures(self) -> Listing:
        if not self.settings.pictures:
            raise NotMadeYet(
                "the scale `own` needs your pictures: set VECLIP_PICTURES to a folder of them, or to WebDataset tars"
                " (or run `veclip caption FOLDER`)"
            )
        own_work = [folder for folder in (self.root, str(self.settings.cache_folder)) if storage.is_local(folder)]
        return OwnPictures(self.settings.pictures, self.settings.alt_texts).scan(without=own_work)

    def _serves_itself(self) -> bool:
        """The sample is always its own world: VECLIP_URLS is for the other scales."""
        return self.source == "openclipart"

    def _run_and_promote(
        self,
        asset: str,
        operation: Operation,
        grid: Grid,
        parts: int,
        upstream: Mapping[str, Current],
        executor: Executor,
        *,
        inputs: Mapping[str, ShardSet],
        partial: bool,
    ) -> StageReport:
        report = self.run(operation, grid, parts, inputs, executor, partial)
        lineage = {name: identity for current in upstream.values() for name, identity in current.inputs.items()}
        self.promote(asset, report, grid, {**lineage, operation.name: report.identity})
        return report

    def run(
        self,
        operation: Operation,
        grid: Grid,
        parts: int,
        inputs: Mapping[str, ShardSet],
        executor: Executor,
        partial: bool,
        only: frozenset[ShardKey] | None = None,
        may_go_on: Callable[[], bool] = lambda: True,
    ) -> StageReport:
        """Run one stage over the first `parts` parts, telling of its shards and parts. Nothing becomes current by it."""
        output = output_of(operation, self.root, self.source, inputs)
        left: dict[int, set[ShardKey]] = {}
        for key in grid.keys(parts):
            if only is None or key in only:
                left.setdefault(key.part, set()).add(key)
        done: dict[int, list[Mapping[str, Any]]] = {}

        def finished(key: ShardKey, marker: Mapping[str, Any]) -> None:
            done.setdefault(key.part, []).append(marker)
            left[key.part].discard(key)
            self.on_shard(operation.name, output, key, marker)
            if not left[key.part]:
                markers = done[key.part]
                self.on_part(key.part, operation.name, _sums(markers))

        return run_stage(
            operation,
            root=self.root,
            source=self.source,
            scale=self.scale.name,
            grid=grid,
            parts=parts,
            partial=partial,
            inputs=inputs,
            executor=executor,
            on_shard=finished,
            only=only,
            may_go_on=may_go_on,
        )

    def made(self, asset: str, report: StageReport, grid: Grid, lineage: Mapping[str, str]) -> Current:
        """What is current of an asset's stage once it is promoted."""
        return Current(
            stage=report.stage,
            scale=self._label(asset),
            identity=report.identity,
            digest=report.digest,
            grid_parts=grid.parts,
            shards_per_part=grid.shards_per_part,
            parts=report.parts,
            partial=report.partial,
            inputs=dict(lineage),
            rows_ok=report.rows_ok,
        )

    def promote(self, asset: str, report: StageReport, grid: Grid, lineage: Mapping[str, str]) -> None:
        promote(self.root, self.source, self.made(asset, report, grid, lineage), report.shards_made_now)


def download_config(scale: Scale) -> DownloadConfig:
    return DownloadConfig(max_pixels=scale.source.max_pixels)


def _sums(markers: list[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        name: sum(marker[name] for marker in markers)
        for name in ("rows_in", "rows_ok", "fallbacks", "bytes", "seconds")
    }
