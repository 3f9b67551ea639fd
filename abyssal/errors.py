"""What can go wrong that a caller can mend. Everything else is a bug and raises what Python raises.

The message of each error names the value, what was expected and the remedy. The command line prints
it as one line and ends with exit code 2; the HTTP service answers 4xx.
"""


class AbyssalError(Exception):
    """The family: catch this to catch whatever a person can put right."""


class ConfigError(AbyssalError):
    """A model configuration or a recipe that cannot be built or run."""


class DataError(AbyssalError):
    """Text, conversations, shards or a tokenizer file that cannot be used."""


class CheckpointError(AbyssalError):
    """A model folder or a training state that is missing, broken or does not fit."""


class RequestError(AbyssalError):
    """A generation request that cannot be served: sampling values, lengths, names."""


class OverloadedError(AbyssalError):
    """More requests than the queue holds; the same request may be served later."""


class KernelError(AbyssalError):
    """Native kernels that an environment variable asks for and this machine cannot have."""


class SandboxError(AbyssalError):
    """A generated program that would have to run without being contained."""


class ProcessError(AbyssalError):
    """Another process of the same run that is gone."""
