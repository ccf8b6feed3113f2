"""Predict: `python launch/predict.py --model RUN/best --image photo.jpg --text "Keller is in town" [--json]`"""

from promptmeup.config import user_errors
from promptmeup.extraction.predict_command import parse, run

if __name__ == "__main__":
    with user_errors():
        run(parse())
