// Trains a small network on handwritten digits, with torch's autograd and optimizer and batch norm of my_ops.
//
//   train DIGITS THREADS STEPS [LOSSES]
//
// DIGITS: digits.pt of export_models.py, with images [N, 1, 8, 8], labels [N] and the first weights. Prints every loss
// and the share of digits it then knows, of the last 297, which it never saw. LOSSES: the losses [STEPS], for
// torch.load.
#include <ATen/Parallel.h>
#include <my_ops/batchnorm.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <iostream>

#include "files.h"

namespace nn = torch::nn;
constexpr int64_t kBatch = 64;
constexpr int64_t kHeldOut = 297;

// [N, 1, 8, 8] -> [N, 10]
nn::Sequential make_network() {
  return nn::Sequential(nn::Conv2d(nn::Conv2dOptions(1, 16, 3).padding(1).bias(false)), my_ops::nn::BatchNorm2d(16),
                        nn::ReLU(), nn::Conv2d(nn::Conv2dOptions(16, 32, 3).stride(2).padding(1).bias(false)),
                        my_ops::nn::BatchNorm2d(32), nn::ReLU(), nn::Flatten(), nn::Linear(512, 10));
}

void set_weights(nn::Sequential& network, const c10::impl::GenericDict& values) {
  const at::NoGradGuard no_grad;
  for (auto& parameter : network->named_parameters()) {
    parameter.value().copy_(values.at(parameter.key()).toTensor());
  }
}

at::Tensor train(nn::Sequential& network, const at::Tensor& images, const at::Tensor& labels, int64_t steps) {
  torch::optim::SGD optimizer(network->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  const int64_t batches = images.size(0) / kBatch;
  at::Tensor losses = at::empty({steps});
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t first = step % batches * kBatch;
    optimizer.zero_grad();
    const at::Tensor logits = network->forward(images.narrow(0, first, kBatch));
    const at::Tensor loss = nn::functional::cross_entropy(logits, labels.narrow(0, first, kBatch));
    loss.backward();
    optimizer.step();
    losses[step] = loss.detach();
    std::cout << "step " << step << "  loss " << loss.item<float>() << '\n';
  }
  return losses;
}

float accuracy(nn::Sequential& network, const at::Tensor& images, const at::Tensor& labels) {
  const at::NoGradGuard no_grad;
  network->eval();
  return network->forward(images).argmax(1).eq(labels).to(at::kFloat).mean().item<float>();
}

int main(int count, char** arguments) {
  if (count < 4 || count > 5) {
    std::cerr << "train DIGITS THREADS STEPS [LOSSES]\n";
    return 2;
  }
  try {
    at::set_num_threads(std::stoi(arguments[2]));
    const auto values = read_value(arguments[1]).toGenericDict();
    const at::Tensor images = values.at("images").toTensor();
    const at::Tensor labels = values.at("labels").toTensor();
    const int64_t seen = images.size(0) - kHeldOut;

    nn::Sequential network = make_network();
    set_weights(network, values);
    const at::Tensor losses =
        train(network, images.narrow(0, 0, seen), labels.narrow(0, 0, seen), std::stoll(arguments[3]));
    std::cout << "accuracy " << accuracy(network, images.narrow(0, seen, kHeldOut), labels.narrow(0, seen, kHeldOut))
              << '\n';
    if (count == 5) write_tensors(arguments[4], {losses});
  } catch (const std::exception& error) {
    std::cerr << "train: " << error.what() << '\n';
    return 1;
  }
}
