from support.tokenizer_fixtures import *  # noqa: F403
