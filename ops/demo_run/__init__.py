"""The demonstration: real requests in phases against a real SGLang that tide-daemon looks after."""
