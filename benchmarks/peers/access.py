"""How the peers reach the sandbox: from the same ST_ variables that the project reads."""

import json
import os
from urllib.parse import urlencode
from urllib.request import urlopen

FOLDER = os.environ["BENCH_FOLDER"]
FEEDS = os.environ["BENCH_FEEDS"].split(",")
TENANT = "ST_TENANTS__ACME__"
API = f"{os.environ['ST_API_URL']}/memberships/v2/tenant/{os.environ[f'{TENANT}TENANT_ID']}"
TOKEN_URL = f"{os.environ['ST_AUTH_URL']}/connect/token"
CLIENT = {
    "grant_type": "client_credentials",
    "client_id": os.environ[f"{TENANT}CLIENT_ID"],
    "client_secret": os.environ[f"{TENANT}CLIENT_SECRET"],
}


def headers() -> dict[str, str]:
    with urlopen(TOKEN_URL, urlencode(CLIENT).encode()) as answer:
        token = json.load(answer)["access_token"]
    return {"Authorization": token, "ST-App-Key": os.environ[f"{TENANT}APP_KEY"]}
