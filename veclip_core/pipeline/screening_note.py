"""What the data card says of screening."""

from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.screening import LOOK, look_config, screen_config
from veclip_core.screening.verdicts import SCREEN
from veclip_core.shards import Current

NOT_SCREENED_FOR = {
    "duplicates": "near-duplicates",
    "evaluation": "copies of evaluation pictures",
    "nsfw": "unsafe content",
    "faces": "faces",
    "known": "known pictures",
}


def screening_note(chain: Chain, manifest: Current) -> str:
    """What the pictures of a manifest were screened for, by which models and lists; and what for they were not."""
    told, checks = [], tuple[str, ...]()
    of_sample = {"evaluation"} if chain.source == "openclipart" else set[str]()  # its list is made without such copies
    if SCREEN in manifest.inputs:
        config = screen_config(manifest.input(chain.root, chain.source, SCREEN))
        checks, limits = config.checks, config.thresholds
        looks = {look["kind"]: look for look in look_config(manifest.input(chain.root, chain.source, LOOK))["checks"]}
        says = {
            "duplicates": lambda: (
                f"near-duplicates within {limits.duplicate_distance} bits (PDQ, pdqhash {looks['pdq']['library']})"
            ),
            "evaluation": lambda: (
                f"copies of pictures of {', '.join(one['name'] for one in looks['evaluation']['sets'])}"
            ),
            "nsfw": lambda: (
                f"unsafe content, scores from {limits.nsfw} ({looks['nsfw']['model']}, {looks['nsfw']['revision']})"
            ),
            "faces": lambda: f"faces, whose boxes are noted and not blurred (weights {looks['faces']['sha256'][:16]})",
            "known": lambda: f"a list of known pictures ({str(config.known)[:16]})",
        }
        told = [f"Pictures were screened for {'; '.join(says[check]() for check in checks)}."]
    if missing := [what for check, what in NOT_SCREENED_FOR.items() if check not in {*checks, *of_sample}]:
        told.append(f"Pictures were not screened for {', '.join(missing)} (VECLIP_SCREEN).")
    return " ".join(told)
