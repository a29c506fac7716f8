"""Prompts as transformers has them: the image token as often as an image has visual tokens."""


def expanded(formatter, messages, tokens_per_image):
    """Token ids of messages, each image token `tokens_per_image` times."""
    times = {formatter.tokens.image_id: tokens_per_image}
    return [token for token in formatter.encode(messages) for _ in range(times.get(token, 1))]
