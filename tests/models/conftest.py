import pytest
from model_fixtures import tiny_model, tokenizer_of


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def tokenizer(model):
    return tokenizer_of(model)
