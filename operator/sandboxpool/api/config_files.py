"""The files by which a sandbox sees its claim, in the pool's `claims.configPath`."""

VOLUME = "sandboxpool-config"
CONFIG_FILE = "config.json"
CLAIM_NAME_FILE = "claim-name"
CLAIM_UID_FILE = "claim-uid"
