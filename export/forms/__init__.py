"""Forms of each target's token mixing that one graph can hold for every length; `traceable` puts them into a model."""
