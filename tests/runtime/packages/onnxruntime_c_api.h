/* The few entry points of ONNX Runtime's C API that the C++ sample uses, at their places in the versioned
 * table, for machines without the library's own header. Places in the table never change; a wrong one
 * shows, since the sample runs on the real library. */
#ifndef FR_EDGE_TEST_ONNXRUNTIME_C_API_H
#define FR_EDGE_TEST_ONNXRUNTIME_C_API_H

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 14

#ifdef __cplusplus
extern "C" {
#endif

typedef struct OrtEnv OrtEnv;
typedef struct OrtStatus OrtStatus;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtSession OrtSession;
typedef struct OrtValue OrtValue;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtModelMetadata OrtModelMetadata;
typedef struct OrtAllocator OrtAllocator;

typedef enum { ORT_LOGGING_LEVEL_ERROR = 3 } OrtLoggingLevel;
typedef enum { OrtArenaAllocator = 1 } OrtAllocatorType;
typedef enum { OrtMemTypeDefault = 0 } OrtMemType;
typedef enum {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2
} ONNXTensorElementDataType;

#define UNUSED(from, to) void* unused_##from[(to) - (from)];
#define ENTRY(name, ...) OrtStatus* (*name)(__VA_ARGS__);
#define RELEASE(type) void (*Release##type)(Ort##type*);

typedef struct OrtApi {
  UNUSED(0, 2)
  const char* (*GetErrorMessage)(const OrtStatus*); /* 2 */
  ENTRY(CreateEnv, OrtLoggingLevel, const char*, OrtEnv**)
  UNUSED(4, 7)
  ENTRY(CreateSession, const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession**)
  UNUSED(8, 9)
  ENTRY(Run, OrtSession*, const OrtRunOptions*, const char* const*, const OrtValue* const*, size_t,
        const char* const*, size_t, OrtValue**)
  ENTRY(CreateSessionOptions, OrtSessionOptions**) /* 10 */
  UNUSED(11, 24)
  ENTRY(SetIntraOpNumThreads, OrtSessionOptions*, int)
  UNUSED(25, 31)
  ENTRY(SessionGetOutputCount, const OrtSession*, size_t*)
  UNUSED(32, 37)
  ENTRY(SessionGetOutputName, const OrtSession*, size_t, OrtAllocator*, char**)
  UNUSED(38, 49)
  ENTRY(CreateTensorWithDataAsOrtValue, const OrtMemoryInfo*, void*, size_t, const int64_t*, size_t,
        ONNXTensorElementDataType, OrtValue**)
  UNUSED(50, 51)
  ENTRY(GetTensorMutableData, OrtValue*, void**)
  UNUSED(52, 60)
  ENTRY(GetTensorElementType, const OrtTensorTypeAndShapeInfo*, ONNXTensorElementDataType*)
  ENTRY(GetDimensionsCount, const OrtTensorTypeAndShapeInfo*, size_t*)
  ENTRY(GetDimensions, const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)
  UNUSED(63, 64)
  ENTRY(GetTensorShapeElementCount, const OrtTensorTypeAndShapeInfo*, size_t*)
  ENTRY(GetTensorTypeAndShape, const OrtValue*, OrtTensorTypeAndShapeInfo**)
  UNUSED(66, 69)
  ENTRY(CreateCpuMemoryInfo, OrtAllocatorType, OrtMemType, OrtMemoryInfo**)
  UNUSED(70, 76)
  ENTRY(AllocatorFree, OrtAllocator*, void*)
  UNUSED(77, 78)
  ENTRY(GetAllocatorWithDefaultOptions, OrtAllocator**)
  UNUSED(79, 92)
  RELEASE(Env)
  RELEASE(Status)
  RELEASE(MemoryInfo)
  RELEASE(Session)
  RELEASE(Value)
  UNUSED(97, 99)
  RELEASE(TensorTypeAndShapeInfo)
  RELEASE(SessionOptions)
  UNUSED(101, 111)
  ENTRY(SessionGetModelMetadata, const OrtSession*, OrtModelMetadata**)
  UNUSED(112, 116)
  ENTRY(ModelMetadataLookupCustomMetadataMap, const OrtModelMetadata*, OrtAllocator*, const char*, char**)
  UNUSED(117, 118)
  RELEASE(ModelMetadata)
  UNUSED(119, 130)
  ENTRY(AddSessionConfigEntry, OrtSessionOptions*, const char*, const char*)
} OrtApi;

typedef struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)(void);
} OrtApiBase;

const OrtApiBase* OrtGetApiBase(void);

#ifdef __cplusplus
}
#endif
#endif
