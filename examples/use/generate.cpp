// Text from an ONNX artifact, with onnxruntime-genai.
//
// ./generate ARTIFACT PROMPT

#include <iostream>

#include "ort_genai.h"

int main(int argc, char** argv) try {
  if (argc != 3) {
    std::cerr << "usage: generate ARTIFACT PROMPT\n";
    return 2;
  }
  OgaHandle runtime;  // shuts the library down at the end, after everything below
  auto model = OgaModel::Create(argv[1]);
  auto tokenizer = OgaTokenizer::Create(*model);
  const char* keys[] = {"add_special_tokens"};  // it adds no beginning-of-text token by itself
  const char* values[] = {"true"};
  tokenizer->UpdateOptions(keys, values, 1);
  auto prompt = OgaSequences::Create();
  tokenizer->Encode(argv[2], *prompt);

  auto parameters = OgaGeneratorParams::Create(*model);
  parameters->SetSearchOption("max_length", prompt->SequenceCount(0) + 40);  // of prompt and answer together
  parameters->SetSearchOptionBool("do_sample", false);
  auto generator = OgaGenerator::Create(*model, *parameters);
  generator->AppendTokenSequences(*prompt);

  auto stream = OgaTokenizerStream::Create(*tokenizer);
  std::cout << argv[2];
  while (!generator->IsDone()) {
    generator->GenerateNextToken();
    std::cout << stream->Decode(generator->GetNextTokens()[0]) << std::flush;
  }
  std::cout << '\n';
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
