"""What tests of the OpenSandbox bridge need: OpenSandbox's kinds, stand-ins for its parts."""
