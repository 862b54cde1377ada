"""Names of files and directories that hold secrets: they stay out of uploads and images.

.dockerignore holds the same list; `docker_lines` says how, and a test compares them.
"""

from functools import cache

from pathspec import GitIgnoreSpec

FILES = (
    # Private keys; what has an extension is none. This comes first, as the last line that fits decides.
    *("id_*", "!id_*.*", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"),
    *("kubeconfig*", "*.kubeconfig", "!kubeconfig.py"),  # this package has code of that name
    *("*.pem", "*.key", "*.ppk", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.p8", "*.tfstate", "*.tfstate.*"),
    # Code of such a name is none, as `passwords.py`.
    *("secrets.*", "passw*", "apikey*", "!secrets.py", "!passw*.py", "!apikey*.py"),
    *(
        ".env*",
        "*.env",
        ".netrc",
        "_netrc",
        ".npmrc",
        ".yarnrc.yml",
        ".pypirc",
        ".git-credentials",
        ".dockercfg",
        "*.tfvars",
    ),
    *(
        ".pgpass",
        ".my.cnf",
        ".htpasswd",
        ".s3cfg",
        ".boto",
        ".terraformrc",
        "rclone.conf",
        ".vault-token",
        ".*_history",
    ),
    *(".databrickscfg", "pip.conf", ".authinfo*", ".vault_pass*"),
    *("credentials*", "*credentials.json", "*credentials.csv", "client_secret*.json", "kaggle.json"),
    *("*accesskey*.csv", "rootkey.csv"),
    *("secret.y*ml", "secret.json", "secret.toml", "secret*.txt", ".secret*"),
    *("service-account*.json", "service_account*.json", "serviceaccount*.json"),
    *("token", "*_token", "*-token", ".token*", "*.token", "*token.txt", "stored_tokens"),
    *("token.json", "token.pickle", "*_token.json", "*-token.json"),
    *("key.json", "*-key.json", "*_key.json", "*api_key", "*-key.txt", "*_key.txt", "*apikey*.txt", "api_keys.*"),
)
"""Names of files, in lower case, as lines of an ignore file."""
FOLDERS = (
    *(".ssh", ".aws", ".azure", ".gnupg", ".docker", ".kube", ".oci", ".kaggle", ".terraform", ".terraform.d"),
    *(".snowflake", ".ngc"),
    *(".config/gcloud", ".config/gh", ".config/hub", ".config/rclone"),
    *(".secrets", "secrets", "credentials", ".password-store", ".1password"),
)
"""Directories of which nothing is taken."""


def holds_secrets(path: str) -> bool:
    """Whether a file, or a directory, which ends in a slash, is named like a secret; capitals do not matter.

    Example: holds_secrets("sub/.AWS/") and holds_secrets("sub/.aws/config").
    """
    lower = path.lower()  # ignore files tell capitals apart; people who name a key file do not
    if _folders().match_file(lower):
        return True
    return not lower.endswith("/") and _files().match_file(lower.rpartition("/")[2])


def docker_lines() -> list[str]:
    """The same as lines of a .dockerignore, whose first ones they must be, as some bring files back."""
    files = [f"!**/{name[1:]}" if name.startswith("!") else f"**/{name}" for name in FILES]
    return files + [f"**/{name}" for name in FOLDERS]


@cache
def _files() -> GitIgnoreSpec:
    return GitIgnoreSpec.from_lines(FILES)


@cache
def _folders() -> GitIgnoreSpec:
    return GitIgnoreSpec.from_lines([f"**/{name}/" for name in FOLDERS])
