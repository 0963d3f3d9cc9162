"""The plugins that come with mqttd. Each is written on `mqttd.api` alone, as anybody's would be."""
