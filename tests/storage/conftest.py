"""Tests of this folder may ask for a hub on loopback."""

from hub_fixture import hub as hub
