"""Transformers on prompts with videos, without torchvision: its own sampling, times, prompts and patches of frames made by Pillow."""

import numpy as np
import torch
from onevision_checkpoints import NoVideo
from PIL import Image
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

FPS = 1.7


class OnPillow(NoVideo):
    """Transformers' own sampling and patches; in between, where it takes torchvision, what its image processor does on Pillow."""

    merge_size = temporal_patch_size = 2
    fps = None

    def __init__(self, size, count):  # width and height of a frame, and how many are taken
        self.size, self.count = size, count

    def __call__(self, videos, **kwargs):
        pixels, grids, metadata = [], [], []
        for video in videos:
            about = VideoMetadata(total_num_frames=len(video), fps=FPS)
            about.frames_indices = Qwen3VLVideoProcessor.sample_frames(
                self, about, num_frames=self.count
            ).tolist()
            resized = [video[i].resize(self.size, Image.Resampling.BICUBIC) for i in about.frames_indices]
            # Values to -1 … 1, as the image processor of this checkpoint has them.
            frames = np.stack([np.asarray(frame, np.float32).transpose(2, 0, 1) for frame in resized])
            frames = torch.from_numpy((frames * np.float32(1 / 255) - 0.5) / 0.5)
            patches, *shape = Qwen3VLVideoProcessor.patchify(self, frames[None], 16, 2, 2)
            pixels.append(patches[0])
            grids.append(shape)
            metadata.append(about)
        return {
            "pixel_values_videos": torch.cat(pixels),
            "video_grid_thw": torch.tensor(grids),
            "video_metadata": metadata,
        }


class Theirs:
    """Transformers on prompts with videos; what else there is of it is that of `Qwen`."""

    def __init__(self, qwen, size, frames):
        self.qwen, self.model, self.processor = qwen, qwen.theirs.model, qwen.theirs.processor
        self.processor.video_processor = OnPillow(size, frames)

    def inputs(self, *turns):
        """As of `qwen_checkpoints.Theirs`; a turn's videos come between its images and its text."""
        messages, images, videos = [], [], []
        for i, turn in enumerate(turns):
            shown, moving, text = turn if isinstance(turn, tuple) else ([], [], turn)
            images += shown
            videos += moving
            content = [{"type": "image"}] * len(shown) + [{"type": "video"}] * len(moving)
            messages.append(
                {
                    "role": ("user", "assistant")[i % 2],
                    "content": [*content, {"type": "text", "text": text}],
                }
            )
        prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.processor(
            text=[prompt], images=images or None, videos=videos or None, return_tensors="pt"
        )

    def answer(self, *turns, new_tokens=8):
        fed = self.inputs(*turns)
        with torch.no_grad():
            made = self.model.generate(**fed, max_new_tokens=new_tokens, do_sample=False)
        return made[0, fed["input_ids"].shape[1] :].tolist()

    def positions(self, fed):
        """[3, S]."""
        taken = ("input_ids", "mm_token_type_ids", "attention_mask", "image_grid_thw", "video_grid_thw")
        return self.model.model.get_rope_index(**{k: fed[k] for k in taken if k in fed})[0][:, 0].numpy()

    def features(self, frames):
        """[N, D] of a video, and its planes [L, N, D]."""
        fed = self.processor.video_processor([frames])
        with torch.no_grad():
            made = self.model.get_video_features(fed["pixel_values_videos"], fed["video_grid_thw"])
        return made.pooler_output[0].numpy(), np.stack([plane[0] for plane in made.deepstack_features])
