"""SGLang 0.5.23 as the engine: a plug-in inside its scheduler process, and the launcher outside."""
