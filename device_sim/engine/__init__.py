"""Devices that run: the MQTT client, floods and scenarios, faults, several processes."""
