"""mqttd: an MQTT 5 broker for IoT devices."""

__version__ = "0.1.0"
