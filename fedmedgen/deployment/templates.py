"""The texts of a kit. `$words` are filled in by `kits`."""

POLICY = """\
# What $site allows, for its lifetime. Written and kept by a person at the site; no message can widen it.
# docs/privacy.md says what each line promises. Check it with: fedmedgen preflight site.yaml

site: $site
folder: ledger            # the ledger, its key, stored replies, security.jsonl: back it up, never restore an old copy
data_root: $data_root     # the radiographs; nothing can choose another folder
data_layout: $data_layout # images | folders | dicom | npz: said here, not guessed

# Public figures: rounded up, chosen once, at least the true counts. They leave the site as they stand here.
patients_declared: $patients_declared
labelled_declared: $labelled_declared   # patients whose radiographs have masks; 0: none takes part in segmentation

# The whole budget of every patient, all studies of all years together.
lifetime_epsilon: $lifetime_epsilon
lifetime_delta: $lifetime_delta         # at most one tenth of 1 / patients_declared

# SHA-256 of the app bundles that may run here. Have somebody you trust read the code before you add one.
bundles:
  - $bundle

# Room for audits: directions planted in every run, and patients that never take part.
audit_canaries: 0
audit_holdout: 0.0

# Secure sums: all sites share one noise, and the server sees only their sum. What may be spent in a lifetime if the
# server and ALL other sites collude; 0: no secure sums. Ask each site's people for their identity before you trust
# the line that stands here: who can put keys of their own into it can be the company that you hide in. So can whoever
# made these kits and kept copies of the keys, yours among them: docs/secure-sum.md says how a site makes its own.
secure_sum:
  lifetime_epsilon_alone: 0.0
  smallest_colluders: 1
  unmasked_allowed: false
  identity: identity.key
  peers:
$peers

# Others, with their defaults: ledger_head: ledger/ledger.head (better on another disk), unit: patient, threads: 1,
# device: auto, kernel_cache: "", smallest_noise_multiplier: 0.3, largest_sample_rate: 0.5, largest_rounds: 500.
"""

START = """\
#!/bin/sh
# Runs until it is told to stop; what it starts ends with it.
cd "$$(dirname "$$0")" && exec fedmedgen $command
"""

UNIT = """\
[Unit]
Description=fedmedgen $what of $project
After=network-online.target
Wants=network-online.target

[Service]
# the folder of this kit, and its owner, who can read nothing else that is secret: README.md makes that user
WorkingDirectory=/opt/fedmedgen/$folder
ExecStart=/opt/fedmedgen/venv/bin/fedmedgen $command
User=fedmedgen
Restart=always
RestartSec=10
KillMode=control-group
UMask=0077
NoNewPrivileges=true
PrivateTmp=true
ProtectSystem=strict
ReadWritePaths=/opt/fedmedgen/$folder
$head
[Install]
WantedBy=multi-user.target
"""

UNIT_HEAD = """\
# the folder of ledger_head, where the policy has it on another disk; without this line every round is refused
#ReadWritePaths=/mnt/other-disk/fedmedgen
"""

COMPOSE = """\
# the image: docker build -t fedmedgen:$version . in a checkout of fedmedgen
services:
  $service:
    image: fedmedgen:$version
    command: ["fedmedgen", $words]
    working_dir: /kit
    user: "$${UID:-1000}:$${GID:-1000}"  # the kit's owner: README.md
    restart: always
    init: true
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    volumes:
      - ./:/kit
$more"""

VOLUMES = """\
      - $data
      # the folder of ledger_head, where the policy has it on another disk
      # - /mnt/other-disk/fedmedgen:/mnt/other-disk/fedmedgen
"""

SERVER_README = """\
# The server of $project

The server is trusted with nothing: what reaches it is noised at the sites. Keep `server.key` on this machine
all the same, and `../authority/` on none that is online: who has `ca.key` can pretend to be this server.

1. Install fedmedgen in a virtual environment: `pip install PATH/TO/fedmedgen`.
2. `fedmedgen serve server.yaml` (or `start.sh`, `fedmedgen-server.service`, `compose.yaml`). Sites reach port
   $port; nothing else needs to be open. Studies can be submitted from this machine alone.
3. `curl http://127.0.0.1:8444/health` says whether it runs, which sites are there and how studies go.
4. `fedmedgen submit study.yaml`: edit the file first. A server that was killed goes on with its studies by
   itself.
5. Logs: `state/logs`. Refused callers: `state/security.jsonl`. Results: `runs/NAME`. A study that failed goes on from
   its last round if its very file is submitted again.

With `compose.yaml`, the container's user must be who owns this folder; compose isn't told by the shell. Once:
`printf 'UID=%s\\nGID=%s\\n' "$$(id -u)" "$$(id -g)" > .env`, then `docker compose up -d`. Step 3 is asked inside:
`docker compose exec server $health`

With `fedmedgen-server.service`, a user of its own must own this folder. Once, as root:

    useradd --system --shell /usr/sbin/nologin fedmedgen
    chown -R fedmedgen: /opt/fedmedgen/server

What is typed by hand is then typed as that user:
`sudo -u fedmedgen /opt/fedmedgen/venv/bin/fedmedgen submit study.yaml`

**A site more**: add it to the project's file and run `fedmedgen provision` again; hand over its kit and copy
`sites/NAME.pub` here.
**A site less**: delete `sites/NAME.pub` here (`provision` can't reach this machine); it is turned away within seconds,
`serve` needn't be restarted.
**The certificate** ends on $ends. `fedmedgen provision` renews it in its last $renew days (`--renew`: at once):
copy `server.crt` and `server.key` here and restart `serve`. Sites need nothing new: they check it by the
authority, which is good until $authority_ends.

The bundle that sites have in their policies: `$bundle` (built from `app/`).
"""

SITE_README = """\
# $site, a site of $project

Your radiographs stay on this machine. What leaves it are sums with noise, and the public words and figures of
`policy.yaml`. Whoever has `site.key` and `identity.key` can pretend to be you, to the server and in secure sums to the
other sites. They were made for you by whoever made this kit: have their copies deleted. If one gets lost, tell the
server's people and the other sites: they revoke it, and hand you a new one. The ledger stays as it is.
`peers.yaml` is the list of identities as the project has it now: a line that is new to you is worth a call.

1. Install fedmedgen in a virtual environment: `pip install PATH/TO/fedmedgen`.
2. Edit `policy.yaml`: where the radiographs are, how many patients you declare, the lifetime budget. It is
   commented line by line.
3. `fedmedgen ledger create policy.yaml`, once in the site's life. Back the folder up; never put an old copy
   back.
4. `fedmedgen preflight site.yaml` says in words what is still missing.
5. `fedmedgen join site.yaml` (or `start.sh`, `fedmedgen-site.service`, `compose.yaml`). It connects out to
   $server; no port needs to be opened. It may be stopped at any time and comes back into the next round.
6. `fedmedgen ledger show ledger/ledger.jsonl` says what has been spent. `ledger/security.jsonl` says who asked
   for what, what was refused, and what was sent (sizes and hashes). Logs: `state/logs`. How it is:
   `curl http://127.0.0.1:$health_port/health`

With `compose.yaml`, the container's user must be who owns this folder; compose isn't told by the shell. Once:
`printf 'UID=%s\\nGID=%s\\n' "$$(id -u)" "$$(id -g)" > .env`, then `docker compose up -d`. Its `volumes` name the
radiographs' folder, and that of `ledger_head` where the policy has it on another disk. How it is, is asked inside:
`docker compose exec site $health`

With `fedmedgen-site.service`, a user of its own must own this folder, and be able to read the radiographs. Once, as
root:

    useradd --system --shell /usr/sbin/nologin fedmedgen
    chown -R fedmedgen: /opt/fedmedgen/sites/$site
    # where ledger_head is on another disk: that folder too, and its ReadWritePaths line in the unit
    install -d -o fedmedgen -m 700 /mnt/other-disk/fedmedgen

What is typed by hand is then typed as that user:
`sudo -u fedmedgen /opt/fedmedgen/venv/bin/fedmedgen preflight site.yaml`

The server's people can't run code of theirs here: a bundle whose SHA-256 isn't in `policy.yaml` is never
unpacked.
"""

HEALTH = """python -c 'import urllib.request as u; print(u.urlopen("http://127.0.0.1:$port/health").read().decode())'"""

STUDY = """\
# fedmedgen submit study.yaml
name: first
overrides:
  - study=folder
  - privacy=eps1
  - federation.min_sites=$sites       # the quorum of each round
  - federation.round_seconds=3600     # how long a round waits for its sites
  - data.classes=[normal,tuberculosis]
  - data.mask_classes=[]              # or [background,lung], where sites hold masks
  - generator.with_masks=false
  - segmenter.rounds=0
"""
