"""gRPC servicer: translates between protobuf messages and `Generations`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc.aio
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus.scheduler.v1 import scheduler_pb2_grpc

from services.scheduler.api.generations import Generations


class SchedulerServicer(scheduler_pb2_grpc.SchedulerServiceServicer):
    """The public API of one tenant's generations."""

    def __init__(self, generations: Generations) -> None:
        self._generations = generations

    async def SubmitGeneration(
        self,
        request: pb.SubmitGenerationRequest,
        context: grpc.aio.ServicerContext[pb.SubmitGenerationRequest, pb.SubmitGenerationResponse],
    ) -> pb.SubmitGenerationResponse:
        generations, created = await self._generations.submit(request)
        return pb.SubmitGenerationResponse(
            generation=generations[0], created=created, generations=generations
        )

    async def GetGeneration(
        self,
        request: pb.GetGenerationRequest,
        context: grpc.aio.ServicerContext[pb.GetGenerationRequest, pb.GetGenerationResponse],
    ) -> pb.GetGenerationResponse:
        return pb.GetGenerationResponse(generation=await self._generations.get(request.generation_id))

    async def WatchGeneration(
        self,
        request: pb.WatchGenerationRequest,
        context: grpc.aio.ServicerContext[pb.WatchGenerationRequest, pb.WatchGenerationResponse],
    ) -> AsyncIterator[pb.WatchGenerationResponse]:
        watching = self._generations.watch(request.generation_id, request.after_sequence)
        async with aclosing(watching) as events:
            async for event in events:
                yield pb.WatchGenerationResponse(event=event)

    async def CancelGeneration(
        self,
        request: pb.CancelGenerationRequest,
        context: grpc.aio.ServicerContext[pb.CancelGenerationRequest, pb.CancelGenerationResponse],
    ) -> pb.CancelGenerationResponse:
        return pb.CancelGenerationResponse(generation=await self._generations.cancel(request.generation_id))

    async def ListGenerations(
        self,
        request: pb.ListGenerationsRequest,
        context: grpc.aio.ServicerContext[pb.ListGenerationsRequest, pb.ListGenerationsResponse],
    ) -> pb.ListGenerationsResponse:
        generations, token = await self._generations.page(request)
        return pb.ListGenerationsResponse(generations=generations, next_page_token=token)

    async def GetVideo(
        self,
        request: pb.GetVideoRequest,
        context: grpc.aio.ServicerContext[pb.GetVideoRequest, pb.GetVideoResponse],
    ) -> AsyncIterator[pb.GetVideoResponse]:
        info, chunks = await self._generations.video(request.generation_id)
        yield pb.GetVideoResponse(header=info)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield pb.GetVideoResponse(chunk=chunk)

    async def DeleteGeneration(
        self,
        request: pb.DeleteGenerationRequest,
        context: grpc.aio.ServicerContext[pb.DeleteGenerationRequest, pb.DeleteGenerationResponse],
    ) -> pb.DeleteGenerationResponse:
        await self._generations.delete(request.generation_id)
        return pb.DeleteGenerationResponse()

    async def ListModels(
        self,
        request: pb.ListModelsRequest,
        context: grpc.aio.ServicerContext[pb.ListModelsRequest, pb.ListModelsResponse],
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=await self._generations.list_models())

    async def PreviewPlan(
        self,
        request: pb.PreviewPlanRequest,
        context: grpc.aio.ServicerContext[pb.PreviewPlanRequest, pb.PreviewPlanResponse],
    ) -> pb.PreviewPlanResponse:
        return await self._generations.preview(request.spec)
