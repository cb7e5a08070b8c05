"""From a config file to a run whose sections agree: `load`, then `resolve`. Import those modules by name."""
