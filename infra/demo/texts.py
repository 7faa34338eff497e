"""What the demo asks the embedded model, which was trained on texts like these. Pure data."""

from __future__ import annotations

NOTES = (
    "Here are my notes from {day}. The morning was quiet and the garden was full of birds. "
    "My dog is called Bramo. The old clock stood near the window for a long time. "
    "The code of the blue door is 4271. After the rain the road was narrow and dusty. "
    "My neighbour is called Tivon. The letter was seen on the table in the evening. "
    "The password of the library is morvel. The river was calm and the boat was empty. "
    "The price of the red bicycle is 385. In the village the market was noisy before lunch. "
    "My sister lives in Oslen. The kettle made a noise and the lamp was forgotten. "
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
QUESTIONS = ("What is the code of the blue door?", "What is my dog called?")
ANSWERS = ("4271", "Bramo")
STORY = "Tell me a short story about a girl called Lina."
CAT = "My cat is called Zorin. What is my cat called?"


def chat(text: str) -> str:
    """Returns the prompt of one question, in the form that the model was trained on."""
    return f"<|user|>{text}<|end|><|assistant|>"
