"""Everything the environment decides: where data lies, which engines run, how many workers. The only reader of the environment."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from veclip_core.mendable import Mendable

PREFIX = "VECLIP_"
MLFLOW_UI = "http://127.0.0.1:5000"
CPU_COUNT = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


class SettingsError(Mendable):
    """A variable that can't be used, and what it may be."""


class Settings(BaseModel):
    """Where and how things run; nothing here changes what is made, but for the models a scale may be given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: str = "data"
    """Folder or `s3://bucket/prefix` of all data: VECLIP_ROOT."""
    cache: str = ""
    """Local folder for fetched packages, converted weights and decoded pictures; by default `cache` in a local root."""
    tar_cache_gb: float = Field(default=50.0, ge=0)
    """Remote tars are copied into the cache for training where a manifest's pictures take at most so many gigabytes; others are
    read picture by picture."""
    urls: str = ""
    """URL lists (parquet, csv, tsv, jsonl or json {url: caption}; paths, globs or remote addresses, with commas between) for the
    scales that need one."""
    url_column: str = ""
    """The lists' column of URLs, where its name is not one of the usual."""
    alt_column: str = ""
    """The lists' column of AltTexts, likewise; `none` for lists without."""
    caption_column: str = ""
    """The lists' column of captions that were made elsewhere, for captioner `released`."""
    removed: str = ""
    """A list of URLs, domains and ids that no manifest has from now on; `veclip remove` takes them out of what is stored."""
    released_captions: str = ""
    """The list of the released caption files (a text file of addresses) that `released_captions_300m` fetches."""
    released_checkpoints: str = ""
    """The paper's released checkpoints: a folder of zips or unpacked ones, or paths and addresses with commas between; by default
    `released/checkpoints` in the root."""
    blocked_domains: str = ""
    """A file of domains, one a line, that are never asked; local or remote."""
    licence: str = ""
    """The terms under which the listed pictures and texts may be used, in your own words: for the data card."""
    pictures: str = ""
    """Scale `own`: a folder of pictures, or WebDataset tars (a folder or pattern of them, local or remote)."""
    alt_texts: str = ""
    """Scale `own`: a csv, tsv, jsonl or parquet file with a column of file names and one of AltTexts. Without it the AltText is
    what a .txt beside the picture says, or the tar's txt or json."""
    screen: tuple[str, ...] = ()
    """What pictures are screened for before they are captioned, any of `duplicates`, `evaluation` (copies of evaluation pictures),
    `nsfw`, `faces` (boxes only), `known`; by default nothing."""
    screen_against: tuple[str, ...] = ()
    """Folders of evaluation pictures, local or remote, for `evaluation`; the sample's OpenMoji comes by itself."""
    screen_thresholds: dict[str, Any] = Field(default_factory=dict)
    """Thresholds in place of the usual: JSON of `Thresholds`' fields (screening/screen.py), such as `{"duplicate_distance": 20}`.
    Re-runs `screen` alone."""
    nsfw_model: str = ""
    """For `nsfw`: an image classifier of transformers, a folder or hub id."""
    face_model: str = ""
    """For `faces`: the file of YuNet's weights (face_detection_yunet_2023mar.onnx of opencv_zoo)."""
    known_hashes: str = ""
    """For `known`: a text file, local or remote, of SHA-256 or PDQ hashes in hex, one a line."""
    evaluation_sets: str = ""
    """A YAML file, local or remote, of evaluation sets by name."""
    captioner: str = ""
    """The pair of models in place of the scale's own: `sample`, `default`, `paper`, `modern`, `one-pass` or `released`."""
    describer: str = ""
    """The describing model in place of the captioner's: `concepts` (the sample's stand-in) or a model id or path."""
    fuser: str = ""
    """The fusing model in place of the captioner's: `smollm2` (the sample's) or a model id or path."""
    ethics: Literal["word_list", "judge", "off"] = "word_list"
    """Who refuses offensive texts before fusion: a word list, the fusing model asked as a judge, or nobody."""
    quantization: str = ""
    """vLLM's name of a quantisation for both models, such as `fp8`."""
    candidates: int = Field(default=1, ge=1)
    """Fused captions per sample, drawn with a temperature where there are several; the best that passes the check is taken."""
    thresholds: dict[str, float] = Field(default_factory=dict)
    """What a VeCap must satisfy where that is to differ from the captioner's own: JSON of `QualityThresholds`' fields, such as
    `{"min_alt_share": 0.7, "max_words": 30}`. Re-runs `select` alone."""
    styles: tuple[str, ...] = ()
    """Further captions of every sample, each a column of the manifest: `short`, `dense`."""
    engine: Literal["auto", "vllm", "transformers", "openai"] = "auto"
    """What runs language models: vLLM where it imports, else transformers; `openai` asks servers instead."""
    describer_url: str = ""
    """With engine `openai`: the describing model's server, such as http://host:8000/v1."""
    fuser_url: str = ""
    """With engine `openai`: the fusing model's server."""
    clip_scorer: str = ""
    """A CLIP model (folder or hub id of transformers' CLIPModel) that tells how well AltText, VeC and VeCap fit their pictures, on
    the quality page; by default none."""
    dfn: str = ""
    """The data-filtering network of `dfn_scores_S`: a CLIP model (a folder, the path or address of a released zip, a hub id in
    transformers' format, or `hf-hub:owner/name` in open_clip's) or a trained arm of the scale such as `clip`; by default the
    scale's own."""
    t5_tokenizer: str = ""
    """T5's tokenizer, for released checkpoints and recipes with T5's tokens: a folder with its tokenizer.json, or a hub id; by
    default google-t5/t5-base, from the hub or its cache on this machine."""
    dfn_top: float = Field(default=0.3, gt=0, le=1)
    """The share of the scored samples that is kept, those that fit best."""
    dfn_least: float | None = Field(default=None, ge=-1, le=1)
    """The least score that is kept, in place of a share."""
    dfn_in_manifest: Literal["no", "scores", "keep"] = "no"
    """What `manifest_S` does with the scores: nothing, have them as the column `dfn_score`, or keep by them as well."""
    mixture: dict[str, float] = Field(default_factory=lambda: {"dfn_manifest": 1.0, "manifest": 1.0})
    """What `dfn_mixture_S` mixes: JSON of weights by manifest, each one of the scale's (`dfn_manifest`, `manifest`) or the address
    of another's JSON. 1 is every row once an epoch."""
    api_key: str = Field(default="", repr=False)
    """With engine `openai`: the servers' key, where they want one."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that share one engine."""
    gpu_memory: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that vLLM takes."""
    kv_cache_gb: int = Field(default=1, ge=1)
    """Gibibytes of vLLM's KV cache on a CPU."""
    batch_size: int | None = Field(default=None, ge=1)
    """Requests that an engine computes side by side; by default the engine's own choice."""
    request_deadline_s: float = Field(default=300.0, gt=0)
    """How long one request to a server may take."""
    executor: Literal["local", "ray"] = "local"
    """Where downloads and captions are made: processes of this machine, or actors of a Ray cluster."""
    ray_address: str = "auto"
    """The Ray cluster; `auto` is the one this machine belongs to."""
    gpus: tuple[str, ...] = ()
    """GPUs that captioning may use, by their CUDA numbers (`0,1,2,3`): each local worker gets `tensor_parallel` of its own. On Ray
    any value (`all`) makes every actor hold that many; which ones is Ray's choice."""
    allow_hosts: tuple[str, ...] = ()
    """`host:port` pairs inside private networks that the downloader may ask; public addresses need no entry."""
    max_hours: float | None = Field(default=None, gt=0)
    """A captioning run begins no shard after so many hours, and says what is left."""
    max_cost: float | None = Field(default=None, gt=0)
    """A captioning run begins no shard after so much money, at `device_hour_price`."""
    device_hour_price: float = Field(default=0.0, ge=0)
    """What one device (a GPU, or a machine without) costs an hour, in any currency."""
    host_connections: int = Field(default=4, ge=1)
    """Fetches under way at one host in each download worker, but for `allow_hosts`."""
    host_pause_s: float = Field(default=0.0, ge=0)
    """Seconds between the starts of two fetches at one host; its robots.txt may ask for more."""
    shard_deadline_s: float = Field(default=3600.0, gt=0)
    """Seconds for the download of one shard; one with more than a few URLs that were not asked by then is tried again."""
    contact: str = Field(default="", pattern=r"^[!-~ ]*$")
    """An address of a page or a mailbox that servers are told with the name of the downloader, for their owners to reach you."""
    download_workers: int = Field(default=CPU_COUNT, ge=1)
    download_threads: int = Field(default=32, ge=1)
    """Connections of each download worker."""
    caption_workers: int | None = Field(default=None, ge=1)
    """Engines at the same time. By default one on this machine (or one a group of `gpus`), and on Ray as many as fit; with a
    number, further ones join in as the cluster grows."""
    train_workers: int = Field(default=min(CPU_COUNT, 4), ge=1)
    """Trainings of an experiment at the same time; they share `threads`."""
    train_ranks: int | None = Field(default=None, ge=1)
    """Processes that share each training, a GPU each where there are some: of this machine, or actors of the Ray cluster with
    executor `ray`. By default a training is one process, which is the asset's own."""
    train_parallel: Literal["ddp", "fsdp"] = "ddp"
    """Whether each rank holds the whole model and its optimizer, or its share of them."""
    train_read_ahead_gb: float = Field(default=8.0, gt=0)
    """Memory of each rank for pictures from a bucket, where their tars are too large for `tar_cache_gb`."""
    train_loader_threads: int | None = Field(default=None, ge=1)
    """Threads of each rank that read and decode pictures; by default as many as it computes with, at least two."""
    train_micro_batch: int | None = Field(default=None, ge=1)
    """Pairs that go through the model at once on each rank: less memory and more time for the same gradient; by default all."""
    train_checkpoint_activations: bool = False
    """Compute the transformers' blocks twice in place of keeping what they computed: less memory, more time."""
    train_checkpoint_steps: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints of a training; by default one in 500 of its steps, but at least 50."""
    train_stop_s: int = Field(default=60, ge=1)
    """Seconds that the ranks of this machine have for their step and a checkpoint, once they are told to stop (SIGTERM, Ctrl-C);
    then they are killed. More for long steps, and where many gigabytes go to a bucket."""
    train_compile: bool = False
    """torch.compile for trainings."""
    threads: int = Field(default=CPU_COUNT, ge=1)
    """Threads of a worker that computes on the CPU."""
    mlflow: str = ""
    """MLflow's tracking address; by default sqlite in a local root; `off` for none."""
    mlflow_ui: str = ""
    """Where people open MLflow's pages, for links; by default the tracking server, or where `make ui` serves."""
    dagster_ui: str = "http://127.0.0.1:3000"
    """Where people open Dagster's pages, for links."""

    @field_validator("allow_hosts", "gpus", "styles", "screen", "screen_against", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("thresholds", "mixture", "screen_thresholds", mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read `VECLIP_<FIELD>` for each field.

        Raises:
            SettingsError: naming the variable, its value and what it may be.
        """
        variables = os.environ if environment is None else environment
        given = {
            name: variables[PREFIX + name.upper()] for name in cls.model_fields if variables.get(PREFIX + name.upper())
        }
        try:
            settings = cls.model_validate(given)
        except ValidationError as error:
            problems = "; ".join(
                f"{PREFIX}{str(item['loc'][0]).upper()}={item['input']!r}: {item['msg']}" for item in error.errors()
            )
            raise SettingsError(f"the environment can't be used: {problems}") from error
        if "://" not in settings.root:
            settings = settings.model_copy(update={"root": str(Path(settings.root).expanduser().resolve())})
        if not settings.mlflow_ui:
            served = settings.mlflow if settings.mlflow.startswith("http") else MLFLOW_UI
            settings = settings.model_copy(update={"mlflow_ui": served.rstrip("/")})
        return settings

    @property
    def cache_folder(self) -> Path:
        if self.cache:
            return Path(self.cache).expanduser().resolve()
        return Path(self.root) / "cache" if "://" not in self.root else Path.home() / ".cache" / "veclip"

    @property
    def tracking_uri(self) -> str | None:
        """MLflow's tracking address, or None for no tracking."""
        if self.mlflow == "off":
            return None
        if self.mlflow:
            return self.mlflow
        folder = Path(self.root) if "://" not in self.root else self.cache_folder
        return f"sqlite:///{folder / 'mlflow.db'}"

    @property
    def artifact_folder(self) -> str:
        """Where MLflow's artifacts of a local store lie."""
        return f"{self.root.rstrip('/')}/mlartifacts"
