"""The files of batches on a phone, and the scripts that end and remove batches there."""

from __future__ import annotations

from amc_mobile.device.adb import PHONE_FOLDER
from amc_mobile.device.adb_shell import process_holds
from amc_mobile.device.phone_facts import BOOT_ID

FOLDER = f"{PHONE_FOLDER}/amc-mobile"
MANIFEST = "manifest.txt"
PLAN = "plan.json"
RESULTS = "results.jsonl"
PATIENCE = "patience"  # seconds after which a runner without a new result hangs
MODELS = "models"
TRASH = "trash-*"
KEPT_FOLDERS = 6  # of runners and libraries, those last used: two of each measurement


def remove_batches(pattern: str, unless: str = "false") -> str:
    """A script that ends the runners of some batches, and removes them.

    `unless`: a condition of the phone's shell on `$folder`, which spares a batch.
    """
    return end_runners(pattern, unless, 'rm -rf "$folder"\n')


def end_runners(pattern: str, unless: str = "false", then: str = "") -> str:
    """A script that ends the runners of some batches. A pid counts while it is still the runner's.

    `unless`: as for `remove_batches`. `then`: runs on each `$folder` afterwards.
    """
    return (
        f"cd {FOLDER} 2>/dev/null || exit 0\n"
        f"for folder in {pattern}; do\n"
        f'[ -d "$folder" ] && ! {{ {unless}; }} || continue\n'
        'if [ -s "$folder/pid" ]; then read -r pid <"$folder/pid"\n'
        f'token="${{folder#batch-}}"; {process_holds("$pid", "$token")} && kill -9 "$pid"; fi\n'
        f"{then}done\n"
    )


def remove_unusable_batches(last: str) -> str:
    """A script that keeps and prints the batches that can still be used: `token boot-id` lines.

    Those are batches with a plan, started since the phone was, whose runner works or has come to its end. The others
    are removed, and where there is none left, `last` is run in their folder. A runner that is stopped (T in its state),
    or whose last result is older than its patience, hangs.
    """
    holds = process_holds("$pid", "$token")
    return (
        f"cd {FOLDER} 2>/dev/null || exit 0\n"
        f"read -r boot_id <{BOOT_ID}; kept=\n"
        "works() {\n"
        'line=; read -r line <"/proc/$pid/stat"; case "${line##*) }" in [TtXZ]*) return 1;; esac\n'
        f'[ -s "$folder/{PATIENCE}" ] && read -r patience <"$folder/{PATIENCE}" || return 0\n'
        f'written=$(stat -c %Y "$folder/{RESULTS}") || return 0; [ $(($(date +%s) - written)) -le "$patience" ]\n'
        "}\n"
        "for folder in batch-*; do\n"
        f'[ -s "$folder/{PLAN}" ] && [ -s "$folder/pid" ] && [ "$(cat "$folder/boot_id")" = "$boot_id" ] || continue\n'
        'token="${folder#batch-}"; pid=$(cat "$folder/pid")\n'
        f'if {{ {holds} && works; }} || tail -n 1 "$folder/{RESULTS}" | grep -q \'"status": *"done"\'; then\n'
        'kept="$kept $folder "; echo "$token $boot_id"; fi\n'
        "done\n"
        + remove_batches("batch-*", unless='case "$kept" in *" $folder "*) true;; *) false;; esac')
        + f'[ -n "$kept" ] || {{ {last}; }}\n'
    )


def keep_installed(folders: str) -> str:
    """A script that notes the use of these folders of installed files, and removes those not used for longest."""
    return (
        f"cd {FOLDER} 2>/dev/null || exit 0\ntouch -c {folders}\n"
        f'ls -td keep-* | tail -n +{KEPT_FOLDERS + 1} | while read -r folder; do rm -rf "$folder"; done'
    )


# Removes everything of ours, and prints how many KiB that were.
REMOVE_ALL = (
    f"[ -d {FOLDER} ] || {{ echo 0; exit 0; }}\n( {end_runners('batch-*')}\n)\ndu -sk {FOLDER}\nrm -rf {FOLDER}"
)

# Ends what still runs and removes all but runner and library. Nobody waits for megabytes to be freed: what is left of
# them the next `PhoneRunner.open` removes.
CLEAN_UP = (
    end_runners("batch-*")
    + f"mkdir trash-$$ && mv batch-* {MODELS} trash-$$\nrm -rf {TRASH} >/dev/null 2>&1 </dev/null &"
)
