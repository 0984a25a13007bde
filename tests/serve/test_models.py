"""The presets as models: listed, and described with the settings that a name holds."""

import httpx2
import openai
import pytest

from tests.serve.test_chat import ask


async def test_presets_are_models(serve, mock):
    """Each with its settings; those that the operator's defaults rule out are not offered."""
    served = await serve(defaults={"answer": "text"})
    assert len([each async for each in (await serve(max_drafts=1)).client.models.list()]) == 10
    models = {each.id: each async for each in await served.client.models.list()}
    assert "pdr" in models
    assert "majority" not in models
    assert models["pdr"].pdr["answer"] == "text"
    assert (await served.client.models.retrieve("sr")).pdr["widths"] == [1, 1, 1]
    with pytest.raises(openai.NotFoundError, match=r"majority.*compares short answers"):
        await ask(served, model="majority")


async def test_a_name_with_settings_is_described_with_them(serve):
    """What would be run under that name; what cannot be is refused as a request would be."""
    models = (await serve()).client.models
    assert (await models.retrieve("pdr?widths=4&kappa=64")).pdr["widths"] == [4]
    assert (await models.retrieve("pdr?")).pdr["widths"] == [16, 8, 4]
    with pytest.raises(openai.BadRequestError, match="unknown setting 'width'"):
        await models.retrieve("pdr?width=4")
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-5'"):
        await models.retrieve("gpt-5?widths=4")


async def test_the_document_tells_of_streams(serve):
    """A reply is JSON or server-sent events; both are in the OpenAPI document."""
    async with httpx2.AsyncClient() as http:
        document = (await http.get(f"{(await serve()).root}/openapi.json")).json()
    reply = document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]
    assert set(reply["content"]) == {"application/json", "text/event-stream"}
