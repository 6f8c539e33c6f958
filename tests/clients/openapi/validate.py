"""Whether the document at a URL is OpenAPI, by its official schema."""

import json
import sys
import urllib.request

from openapi_spec_validator import validate

with urllib.request.urlopen(sys.argv[1], timeout=60) as answer:
    validate(json.load(answer))
