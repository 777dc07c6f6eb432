"""Tests of the pages may ask for a hub on loopback."""

from hub_fixture import hub as hub
